"""The pictures of results, one function each, drawn without a display.

Each gives the figure, and what it shows in words.

Every picture is six inches wide with letters of 12 points, so that it can be read on a telephone.
Colours are those of Okabe and Ito (2008), which the colour-blind tell apart; what they mean is also
said by place, hatching or letters.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from virnucpro_pl.plot.contigs import CALLS, Records
from virnucpro_pl.plot.names import shortened
from virnucpro_pl.plot.page import Picture
from virnucpro_pl.plot.results import Results, Track

COLORS = {"virus": "#D55E00", "others": "#0072B2", "NA": "#8A8A8A"}
HATCHES = {"virus": "", "others": "//", "NA": ".."}
DPI = 300
WIDTH = 6.0
"""Inches."""
STYLE = {
    "font.size": 12,
    "axes.titlesize": 13,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 11,
    "legend.title_fontsize": 11,
    "hatch.linewidth": 0.6,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.hspace": 0.12,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "virnucpro-pl",  # the same picture is the same file
}
_LOG_FROM = 1000
"""Highest column from which a histogram is drawn on a logarithmic scale."""
_EDGES = (0, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, np.inf)
"""Bases between which records are counted together."""
_BIN_NAMES = ("<0.5", "0.5-1", "1-2", "2-5", "5-10", "10-20", "20-50", "≥50")
_NAME_LETTERS = 36
_TITLE_WIDTH = WIDTH - 1.1
"""Inches: what is over the axes, and a little on both sides."""
_LEAST_BARS = 6
"""For how many bars there is room at least, so that a single one is not as wide as the picture."""


def make_picture(
    name: str, title: str, draw: Callable[[], tuple[Figure, str]], *, of_run: bool = False
) -> Picture:
    """Render a picture.

    Args:
        name: Name of its files, without `.png` and `.svg`.
        title: Its heading on the page.
        draw: Gives the figure, and what it shows in words.
        of_run: Whether it is of how the run went.
    """
    png, svg = io.BytesIO(), io.BytesIO()
    with rc_context(STYLE), warnings.catch_warnings():
        # Letters that matplotlib's font has not; the page and the SVG file have them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure, alt = draw()
        figure.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
        figure.set_layout_engine("none")  # all has its place now
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return Picture(name, title, alt, png.getvalue(), svg.getvalue(), of_run)


def new_figure(height: float, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """An empty figure of so many inches' height, with axes one above the other."""
    figure = empty_figure(height)
    axes = figure.subplots(rows, squeeze=False)
    return figure, list(axes[:, 0])


def empty_figure(height: float) -> Figure:
    """A figure of so many inches' height, without axes."""
    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasAgg(figure)
    return figure


def plain(name: str, letters: int = _NAME_LETTERS) -> str:
    """A name as matplotlib draws it letter by letter, cut in the middle if it is long.

    Dollar signs would begin a formula, and an underscore at the beginning hides a legend's entry.

    Args:
        name: A name that a user has given.
        letters: How many it may have.
    """
    text = shortened(name, letters).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def fit_title(axis: Axes, title: str, **style: Any) -> None:
    """Write a title, in smaller letters if it would not fit on the picture."""
    text = axis.set_title(title, **style)
    width = text.get_window_extent().width / axis.figure.get_dpi()
    text.set_fontsize(text.get_fontsize() * min(1.0, _TITLE_WIDTH / width))


def draw_scores(results: Results) -> tuple[Figure, str]:
    """Distribution of P(virus) over ORFs, and of the virus_score over records if there is one."""
    panels = [("ORFs", "P(virus) of an ORF (score2)", results.orf_scores)]
    if results.records is not None:
        panels.append(("Records", "virus_score of a record", results.records.virus_score))
    figure, axes = new_figure(2.6 * len(panels), len(panels))
    words = []
    for axis, (what, label, scores) in zip(axes, panels, strict=True):
        known = scores[np.isfinite(scores)]
        counts, *_ = axis.hist(known, bins=50, range=(0, 1), color=COLORS["others"])
        at = results.threshold if what == "Records" else 0.5
        axis.set_title(f"{what}: {len(known):,} with a score")
        axis.set(xlabel=label, ylabel=what, xlim=(0, 1))
        if np.max(counts) >= _LOG_FROM:
            axis.set(yscale="log", ylabel=f"{what} (log scale)", ylim=(0.7, None))
            axis.yaxis.set_major_formatter(FuncFormatter(_with_commas))
            axis.yaxis.set_minor_formatter(NullFormatter())
        else:
            axis.yaxis.set_major_locator(MaxNLocator(integer=True))
        if at is None:
            words.append(f"{len(known):,} {what}, called by their false discovery rate")
            continue
        axis.axvline(at, color="black", linestyle="--", linewidth=1.2, label=f"{at:g}")
        axis.legend(frameon=False)
        above = int((known >= np.float32(at)).sum())
        words.append(f"{above:,} of {len(known):,} {what} lie at or above {at:g}, the dashed line")
    return figure, f"Histograms of scores from 0 to 1: {'; '.join(words)}."


def _with_commas(value: float, _: int) -> str:
    return f"{value:,g}"


def draw_track(track: Track) -> tuple[Figure, str]:
    """P(virus) along one record, a line for each chunk from its first base to its last.

    A chunk that was not sampled is a gap.
    """
    figure, [axis] = new_figure(2.9)
    scored = np.isfinite(track.scores).all(axis=1)
    scale = 1.0 if track.bases is None else 1e3
    computed = int(track.sampled.sum())
    many = computed > 200
    size = float(np.clip(6000 / computed, 3, 30))
    for call, called in (("others", ~track.viral), ("virus", track.viral)):
        rows = np.flatnonzero(called & scored)
        begins, ends = track.places[rows].T / scale
        axis.hlines(track.scores[rows, 1], begins, ends, COLORS[call], linewidth=1 if many else 4)
        middle = (begins + ends) / 2
        style = {"c": COLORS[call], "marker": "^" if call == "virus" else "o", "linewidths": 0}
        label = f"{call} ({len(rows):,})"
        axis.scatter(middle, track.scores[rows, 1], size, label=label, **style)
    empty = track.places[~scored & track.sampled] / scale
    if len(empty):
        axis.hlines(np.full(len(empty), -0.06), *empty.T, COLORS["NA"], linewidth=5)
        axis.scatter([], [], size, COLORS["NA"], marker="s", label=f"no score ({len(empty):,})")
    axis.axhline(0.5, color="black", linestyle="--", linewidth=1)
    length = "" if track.bases is None else f", {track.bases:,} bases"
    fit_title(axis, plain(track.name) + length)
    unit = "Chunk" if track.bases is None else "Position (kb)"
    axis.set(xlabel=unit, ylabel="Best P(virus)", ylim=(-0.12, 1.05))
    axis.set_xlim(track.places[0, 0] / scale, track.places[-1, 1] / scale)
    if track.bases is None:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    sample = "" if track.sampled.all() else f", a sample of {computed:,} of {len(track.sampled):,}"
    figure.legend(
        title=f"Chunks called{sample}",
        loc="outside lower center",
        ncols=3,
        frameon=False,
        markerscale=7 / size**0.5,
    )
    viral = int((track.viral & scored).sum())
    call = f", called {track.call}" if track.call else ""
    rest = f"; {len(empty):,} more have none" if len(empty) else ""
    return figure, (
        f"P(virus) along {track.name}{call}, dashed at 0.5. Chunks called virus: {viral:,} of "
        f"{int(scored.sum()):,} with a score{rest}. {_longest_run(track)}"
    )


def _longest_run(track: Track) -> str:
    """Say where the longest run of chunks called virus lies: a prophage, perhaps.

    Chunks without a score do not end a run. Of a sample nobody knows: it is said that it is one.
    """
    if not track.sampled.all():
        computed, in_all = track.sampled.sum(), len(track.sampled)
        return f"They are a sample of {computed:,} of {in_all:,} chunks; the others are gaps."
    scored = np.isfinite(track.scores).all(axis=1)
    places, viral = track.places[scored], track.viral[scored].astype(np.int8)
    runs = np.flatnonzero(np.diff(viral, prepend=0, append=0)).reshape(-1, 2)
    if not len(runs):
        return "No chunk is called virus."
    begin, end = runs[np.argmax(runs[:, 1] - runs[:, 0])]
    first, last = places[begin, 0], places[end - 1, 1]
    if track.bases is None:
        return f"The longest run of such chunks is {first + 0.5:.0f} to {last - 0.5:.0f}."
    return f"The longest run of such chunks is bases {first + 1:,.0f} to {last:,.0f}."


def draw_length_shares(records: Records) -> tuple[Figure, str]:
    """Share of the calls among records of like length."""
    figure, [axis] = new_figure(3.8)
    bins = np.digitize(records.lengths, _EDGES[1:-1])
    counts = np.stack(
        [np.bincount(bins[records.calls == call], minlength=len(_BIN_NAMES)) for call in range(3)]
    )  # (calls, bins)
    total = counts.sum(axis=0)
    used = np.flatnonzero(total)
    shown = np.arange(used[0], used[-1] + 1) if len(used) else used
    shares = 100 * counts[:, shown] / np.maximum(total[shown], 1)
    bottom = np.zeros(len(shown))
    for call in ("virus", "others", "NA"):
        height = shares[CALLS.index(call)]
        label = "no score" if call == "NA" else call
        style = {"color": COLORS[call], "hatch": HATCHES[call], "edgecolor": "white"}
        axis.bar(np.arange(len(shown)), height, bottom=bottom, label=label, **style)
        bottom += height
    for place, number in enumerate(total[shown]):
        axis.text(place, 101.5, f"{number:,}", ha="center", va="bottom", fontsize=10)
    axis.set_xticks(np.arange(len(shown)), [_BIN_NAMES[i] for i in shown])
    axis.set_title("Calls by length (records above each bar)", pad=18)
    axis.set(xlabel="Length of the record (kb)", ylabel="Share of records (%)", ylim=(0, 100))
    middle, half = (len(shown) - 1) / 2, max(len(shown), _LEAST_BARS) / 2
    axis.set_xlim(middle - half, middle + half)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    words = "; ".join(
        f"{_BIN_NAMES[i]} kb: {counts[1, i]:,} virus of {total[i]:,}" for i in shown if total[i]
    )
    return figure, f"Bars of the share of calls among records of like length. {words}."


def draw_phases(seconds: dict[str, float]) -> tuple[Figure, str]:
    """Wall time of each phase of the run."""
    figure, [axis] = new_figure(1.3 + 0.4 * len(seconds))
    names, values = list(seconds), np.array(list(seconds.values()), float)
    bars = axis.barh(np.arange(len(names)), values, color=COLORS["others"])
    axis.bar_label(bars, [f"{value:,.1f} s" for value in values], padding=4)
    axis.set_yticks(np.arange(len(names)), names)
    axis.invert_yaxis()
    axis.set_title(f"Wall time: {values.sum():,.1f} s")
    axis.set(xlabel="Seconds", xlim=(0, max(1e-3, float(values.max(initial=0)) * 1.25)))
    axis.xaxis.set_major_formatter(FuncFormatter(_with_commas))
    phases = ", ".join(f"{name} {value:,.1f} s" for name, value in seconds.items())
    return figure, f"Bars of the wall time of each phase: {phases}."


def ratio(values: NDArray[np.float64]) -> float:
    """How many times the smallest value the largest is; 1 where a logarithm makes no sense."""
    low, high = float(values.min(initial=np.inf)), float(values.max(initial=-np.inf))
    return high / low if 0 < low < high else 1.0
