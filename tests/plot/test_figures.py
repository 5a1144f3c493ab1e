"""Each picture of results: what is drawn, its labels, and its words."""

import io
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from matplotlib.text import Text

from virnucpro_pl.plot.contigs import Records
from virnucpro_pl.plot.figures import (
    COLORS,
    DPI,
    WIDTH,
    draw_length_shares,
    draw_phases,
    draw_scores,
    draw_track,
    make_picture,
    ratio,
)
from virnucpro_pl.plot.results import Results, Track


def results(scores, virus_scores=None, threshold=0.5):
    records = None
    if virus_scores is not None:
        count = len(virus_scores)
        records = Records(np.full(count, 700), np.float32(virus_scores), np.zeros(count, np.int8))
    summary = {"threshold": threshold}
    return Results("x", np.float32(scores), records, [], pd.DataFrame(), summary, {})


def track(virus, others=None, bases=None, name="contig", sampled=None):
    virus = np.float32(virus)
    others = 1 - virus if others is None else np.float32(others)
    begins = np.arange(len(virus)) * 400.0 if bases else np.arange(len(virus)) + 0.5
    places = np.stack([begins, begins + (500 if bases else 1)], axis=1)
    sampled = np.ones(len(virus), np.bool_) if sampled is None else np.array(sampled)
    return Track(name, "others", bases, places, np.stack([others, virus], axis=1), sampled)


def texts(figure):
    return [found.get_text() for found in figure.findobj(Text) if found.get_text()]


def test_scores_are_counted_and_labelled():
    figure, alt = draw_scores(results([0.1, 0.1, 0.9, np.nan], [0.3, 0.7], threshold=0.2))
    orfs, records = figure.axes
    heights = [bar.get_height() for bar in orfs.patches]
    assert (len(heights), sum(heights), heights[5], heights[45]) == (50, 3, 2, 1)
    assert orfs.get_title() == "ORFs: 3 with a score"
    assert (orfs.get_xlabel(), orfs.get_ylabel()) == ("P(virus) of an ORF (score2)", "ORFs")
    assert records.get_xlabel() == "virus_score of a record"
    assert records.lines[0].get_xdata() == [0.2, 0.2]
    assert "1 of 3 ORFs lie at or above 0.5" in alt
    assert "2 of 2 Records lie at or above 0.2" in alt


def test_scores_without_records_are_one_panel_and_many_are_logarithmic():
    figure, _ = draw_scores(results(np.full(1000, 0.25)))
    [axis] = figure.axes
    assert axis.get_yscale() == "log"
    assert axis.get_ylabel() == "ORFs (log scale)"


def test_track_shows_calls_gaps_and_the_longest_run():
    scores = [0.1, 0.9, np.nan, 0.8, 0.2, 0.7]
    figure, alt = draw_track(track(scores, bases=2500))
    [axis] = figure.axes
    assert axis.get_title() == "contig, 2,500 bases"
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("Position (kb)", "Best P(virus)")
    assert axis.get_xlim() == (0, 2.5)
    shown = texts(figure)
    for label in ("virus (3)", "others (2)", "no score (1)", "Chunks called"):
        assert label in shown
    viral = next(c for c in axis.collections if c.get_label() == "virus (3)")
    np.testing.assert_allclose(viral.get_offsets()[:, 0], [0.65, 1.45, 2.25])
    assert "3 of 5 with a score; 1 more have none" in alt
    # The chunk without a score does not end the run of the second to the fourth.
    assert "The longest run of such chunks is bases 401 to 1,700." in alt


def test_track_of_a_sample_has_gaps_and_no_run():
    scores = [0.9, np.nan, np.nan, 0.8, np.nan, np.nan, 0.7]
    figure, alt = draw_track(track(scores, bases=2900, sampled=[True, False, False] * 2 + [True]))
    [axis] = figure.axes
    assert axis.get_xlim() == (0, 2.9)
    shown = texts(figure)
    assert {"virus (3)", "others (0)", "Chunks called, a sample of 3 of 7"} <= set(shown)
    assert not [text for text in shown if "no score" in text]
    drawn = [path.vertices[:, 0] for c in axis.collections for path in c.get_paths()
             if len(path.vertices) == 2]  # fmt: skip
    np.testing.assert_allclose(drawn, [[0, 0.5], [1.2, 1.7], [2.4, 2.9]])
    assert "Chunks called virus: 3 of 3 with a score. They are a sample of 3 of 7" in alt
    assert "run" not in alt
    sampled = [True, False, True, True, False, False, True]
    _, alt = draw_track(track(scores, bases=2900, sampled=sampled))
    assert "3 of 3 with a score; 1 more have none. They are a sample of 4 of 7" in alt


def test_track_tie_is_virus_and_best_of_others_decides():
    figure, alt = draw_track(track([0.5, 0.6], others=[0.5, 0.7]))
    assert {"virus (1)", "others (1)"} <= set(texts(figure))
    assert figure.axes[0].get_xlabel() == "Chunk"
    assert "The longest run of such chunks is 1 to 1." in alt


def test_track_without_virus_says_so_and_long_names_are_cut():
    figure, alt = draw_track(track([0.1] * 300, name="n" * 60 + "end"))
    assert "Chunks called virus: 0 of 300 with a score. No chunk is called virus." in alt
    assert "n" * 60 + "end" in alt
    assert figure.axes[0].get_title() == "n" * 18 + "…" + "n" * 14 + "end"


@pytest.mark.parametrize("name", ["W" * 200, "i" * 200, "NODE_1"])
def test_titles_fit_on_the_picture(name):
    figure, _ = draw_track(track([0.1], bases=500, name=name))
    figure.canvas.draw()
    box = figure.axes[0].title.get_window_extent()
    assert box.x0 > 0
    assert box.x1 < figure.bbox.x1


@pytest.mark.parametrize("name", ["$x_1$ $\\frac$", "_hidden", "<b>&", "a\\$b", "%s{}"])
def test_names_are_drawn_letter_by_letter(name):
    picture = make_picture("n", "t", lambda: draw_track(track([0.1], bases=500, name=name)))
    drawn = "".join(ElementTree.fromstring(picture.svg).itertext())
    assert f"{name}, 500 bases" in drawn


def test_record_without_any_score_is_drawn():
    figure, alt = draw_track(track([np.nan] * 3, bases=1300))
    assert "no score (3)" in texts(figure)
    assert "0 of 0 with a score; 3 more have none. No chunk is called virus." in alt


def test_length_shares_add_up_to_all():
    records = Records(
        np.array([100, 499, 500, 60_000, 60_000, 60_000, 60_000]),
        np.zeros(7, np.float32),
        np.array([0, 2, 1, 1, 1, 1, 0], np.int8),
    )
    figure, alt = draw_length_shares(records)
    [axis] = figure.axes
    labels = [label.get_text() for label in axis.get_xticklabels()]
    assert labels == ["<0.5", "0.5-1", "1-2", "2-5", "5-10", "10-20", "20-50", "≥50"]
    virus, others, none = ([bar.get_height() for bar in group] for group in axis.containers)
    assert (virus[0], others[0], none[0]) == (0, 50, 50)
    assert (virus[1], virus[7], others[7]) == (100, 75, 25)
    assert axis.get_ylabel() == "Share of records (%)"
    assert axis.get_xlabel() == "Length of the record (kb)"
    assert {"virus", "others", "no score", "2", "1", "4", "0"} <= set(texts(figure))
    assert "≥50 kb: 3 virus of 4" in alt
    assert len({bar.get_hatch() for bar in axis.patches}) == 3  # not by colour alone


@pytest.mark.parametrize("classes", [1, 2, 5, 8])
def test_bars_are_never_as_wide_as_the_picture(classes):
    lengths = np.array([100, 600, 1500, 3000, 6000, 15_000, 30_000, 90_000][:classes])
    records = Records(lengths, np.zeros(classes, np.float32), np.ones(classes, np.int8))
    [axis] = draw_length_shares(records)[0].axes
    low, high = axis.get_xlim()
    bars = axis.patches[:classes]
    assert bars[0].get_width() / (high - low) < 0.15
    assert low <= bars[0].get_x()
    assert bars[-1].get_x() + bars[-1].get_width() <= high
    assert bars[0].get_x() - low == pytest.approx(high - bars[-1].get_x() - bars[-1].get_width())


def test_phases_are_named_with_their_seconds():
    figure, alt = draw_phases({"prepare": 1.25, "compute": 1000.0})
    [axis] = figure.axes
    assert [bar.get_width() for bar in axis.patches] == [1.25, 1000]
    assert axis.get_title() == "Wall time: 1,001.2 s"
    assert {"prepare", "compute", "Seconds"} <= set(texts(figure))
    assert "compute 1,000.0 s" in alt


@pytest.mark.parametrize(
    ("draw", "height"),
    [
        (lambda: draw_scores(results([0.5], [0.5])), 5.2),
        (lambda: draw_track(track([0.5])), 2.9),
        (lambda: draw_phases({"a": 0.0, "b": 0.0}), 2.1),
    ],
)
def test_picture_is_a_png_and_an_svg_of_its_size_and_not_empty(draw, height):
    picture = make_picture("name", "title", draw)
    assert (picture.name, picture.title, picture.alt[-1]) == ("name", "title", ".")
    drawing = ElementTree.fromstring(picture.svg)
    assert drawing.get("viewBox") == f"0 0 {WIDTH * 72:g} {height * 72:g}"
    assert len(drawing.findall(".//{*}text")) > 5  # text that can be searched and edited
    pixels = imread(io.BytesIO(picture.png))
    assert pixels.shape[:2] == (round(height * DPI), WIDTH * DPI)
    assert 0.01 < np.mean(pixels[..., :3].min(axis=2) < 0.9) < 0.8
    assert make_picture("name", "title", draw) == picture


def test_colours_stand_out_from_white_and_from_each_other():
    def luminance(color):
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return np.dot(linear, (0.2126, 0.7152, 0.0722))

    for color in COLORS.values():
        assert 1.05 / (luminance(color) + 0.05) >= 3  # WCAG 2.1, 1.4.11


def test_ratio_is_one_where_a_logarithm_makes_no_sense():
    assert ratio(np.array([2.0, 8.0])) == 4
    assert ratio(np.array([0.0, 8.0])) == ratio(np.array([-1.0, 8.0])) == ratio(np.array([])) == 1
