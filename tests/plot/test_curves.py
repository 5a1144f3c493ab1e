"""Each picture of a classifier: what is drawn, its labels, and its words."""

import io
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.image import imread
from matplotlib.text import Text

from virnucpro_pl.measures import confusion_at, reliability
from virnucpro_pl.plot.classifier import Classifier, read_classifier
from virnucpro_pl.plot.curves import draw_reliability, draw_thresholds
from virnucpro_pl.plot.figures import DPI, STYLE, WIDTH, make_picture

LABELS = np.array([0, 0, 0, 1, 1])
BEFORE = np.array([0.05, 0.05, 0.65, 0.95, 0.98])
AFTER = np.array([0.01, 0.01, 0.33, 0.72, 0.99])


def classifier(labels=LABELS, before=BEFORE, after=AFTER, repeat=1):
    """ORFs as they are given, and two records."""
    labels, before, after = (np.repeat(values, repeat) for values in (labels, before, after))
    two = np.array([0, 1])
    bins = {"orfs_before": reliability(labels, before), "orfs_after": reliability(labels, after)}
    bins |= {"records_before": reliability(two, two * 0.8), "records_after": reliability(two, two)}
    calls = {"orfs": confusion_at(labels, before), "records": confusion_at(two, two * 0.8)}
    empty = dict.fromkeys(Classifier._fields)
    return Classifier(**{**empty, "measured_on": "test", "reliability": bins, "thresholds": calls})


def texts(figure):
    return [found.get_text() for found in figure.findobj(Text) if found.get_text()]


def points(axis, label):
    """Coordinates (n, 2) of what is drawn of a line."""
    [line] = [line for line in axis.lines if line.get_label().startswith(label)]
    data = np.stack(line.get_data(), axis=1)
    return data[np.isfinite(data).all(axis=1)]


def test_reliability_draws_bins_with_items_beside_the_diagonal():
    figure, alt = draw_reliability(classifier())
    orfs, records, *_ = figure.axes
    np.testing.assert_allclose(points(orfs, "before"), [[0.05, 0], [0.65, 0], [0.965, 1]])
    np.testing.assert_allclose(points(orfs, "after"), [[0.01, 0], [0.33, 0], [0.72, 1], [0.99, 1]])
    np.testing.assert_allclose(points(records, "before"), [[0, 0], [0.8, 1]])
    np.testing.assert_array_equal(orfs.lines[0].get_data(), [[0, 1], [0, 1]])
    assert [axis.get_title() for axis in (orfs, records)] == ["5 ORFs", "2 records"]
    # (2 * 0.05 + 0.65 + 2 * 0.035) / 5 and (2 * 0.01 + 0.33 + 0.28 + 0.01) / 5
    for text in ("before: ECE 0.164", "after: ECE 0.128", "before: ECE 0.100", "after: ECE 0.000",
                 "Held out: test", "Claimed probability", "Observed share of virus"):  # fmt: skip
        assert text in texts(figure)
    assert "(ECE) of 5 ORFs: 0.164 before, 0.128 after; both are then furthest apart from" in alt
    assert "from 0.3 to 0.4, 0.330 claimed and 0.000 observed (items: 1). Of 2 records" in alt


def test_reliability_counts_the_items_of_each_bin():
    figure, _ = draw_reliability(classifier())
    _, _, counts, _ = figure.axes
    before, after = ([(b.get_x(), b.get_height()) for b in bars] for bars in counts.containers)
    assert [(int(10 * x), height) for x, height in before] == [(0, 2), (6, 1), (9, 2)]
    assert [(int(10 * x), height) for x, height in after] == [(0, 2), (3, 1), (7, 1), (9, 1)]
    assert {bar.get_hatch() for bar in counts.patches} == {None, "////"}  # not by colour alone
    assert counts.get_yscale() == "linear"
    figure, _ = draw_reliability(classifier(repeat=1000))
    assert figure.axes[2].get_yscale() == "log"
    figure.canvas.draw()
    assert "1k" in texts(figure)


def test_points_are_joined_to_those_of_the_next_bin_only():
    figure, _ = draw_reliability(classifier())
    [line] = [line for line in figure.axes[0].lines if line.get_label().startswith("after")]
    assert np.isnan(line.get_xdata()[[1, 2, 4, 5, 6, 8]]).all()


def test_thresholds_draw_four_measures_and_the_default():
    figure, alt = draw_thresholds(classifier())
    orfs, records = figure.axes
    for name, expected in (("precision", 2 / 3), ("recall", 1), ("F1", 0.8),
                           ("false positive rate", 1 / 3)):  # fmt: skip
        line = points(orfs, name)
        assert line[:98, 0] == pytest.approx(np.arange(1, 99) / 100)
        assert line[49] == pytest.approx([0.5, expected])
    # Nothing is called beyond 0.8, where there is no precision.
    assert points(records, "precision")[-1] == pytest.approx([0.8, 1])
    assert points(records, "recall")[-1] == pytest.approx([0.99, 0])
    assert records.get_xlabel() == "Threshold of virus_score"
    assert {"5 ORFs, 2 of them virus", "0.5, the default", "Held out: test"} <= set(texts(figure))
    assert "at 0.5 precision 0.667, recall 1.000, F1 0.800, false positive rate 0.333" in alt
    assert "F1 is highest at 0.66, 1.000." in alt


@pytest.mark.parametrize("label", [0, 1])
def test_items_of_one_class_are_drawn(label):
    one = classifier(np.full(5, label), BEFORE)
    figure, alt = draw_thresholds(one)
    missing = "recall" if label == 0 else "false positive rate"
    assert not len(points(figure.axes[0], missing))
    assert f"{missing} not defined" in alt
    figure, alt = draw_reliability(one)
    assert (points(figure.axes[0], "after")[:, 1] == label).all()
    assert f"and {label:.3f} observed" in alt


@pytest.mark.parametrize(("draw", "height"), [(draw_reliability, 5.5), (draw_thresholds, 6.6)])
@pytest.mark.parametrize(
    ("n_orfs", "n_records", "spread"), [(5, 2, 0.3), (300, 30, 0.1), (1_000_001, 100_001, 0.3)]
)
def test_all_letters_are_on_the_picture(
    write_classifier, tmp_path, draw, height, n_orfs, n_records, spread
):
    known = read_classifier(write_classifier(tmp_path / "c", n_orfs, n_records, spread=spread))
    with rc_context(STYLE):
        figure, alt = draw(known)
        figure.canvas.draw()
    for text in figure.findobj(Text):
        if text.get_text() and text.get_visible():
            box = text.get_window_extent()
            assert min(box.x0, box.y0) >= 0, text
            assert box.x1 <= figure.bbox.x1, text
            assert box.y1 <= figure.bbox.y1, text
    picture = make_picture("name", "title", lambda: draw(known))
    assert imread(io.BytesIO(picture.png)).shape[:2] == (round(height * DPI), WIDTH * DPI)
    assert f"{n_orfs:,} ORFs" in "".join(ElementTree.fromstring(picture.svg).itertext())
    assert alt == picture.alt
    assert alt.endswith(".")
