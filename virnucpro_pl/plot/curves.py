"""The pictures of a classifier: what its probabilities are worth, and its calls by the threshold.

Each gives the figure, and what it shows in words, as those of `figures` do.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

from virnucpro_pl.measures import Confusion, Reliability
from virnucpro_pl.plot.classifier import ITEMS, STAGES, Classifier
from virnucpro_pl.plot.figures import COLORS, empty_figure, new_figure

NAMES = {"orfs": "ORFs", "records": "records"}
MEASURES = {
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "false_positive_rate": "false positive rate",
}
"""What is drawn against the threshold, and its name."""
_SCORES = {"orfs": "P(virus)", "records": "virus_score"}
_POINTS = {
    "before": {"color": COLORS["NA"], "marker": "o", "ms": 9, "mfc": "white", "ls": "--"},
    "after": {"color": COLORS["others"], "marker": "s", "ms": 5, "ls": "-"},
}
"""Of different sizes, so that neither hides the other."""
_BARS = {
    "before": {"edgecolor": COLORS["NA"], "facecolor": "white", "hatch": "////"},
    "after": {"edgecolor": COLORS["others"], "facecolor": COLORS["others"]},
}
_LINES = {
    "precision": {"color": "#0072B2", "ls": "-"},
    "recall": {"color": "#D55E00", "ls": "--"},
    "f1": {"color": "#000000", "ls": "-."},
    "false_positive_rate": {"color": "#007A5A", "ls": ":"},
}
_LOG_FROM = 50
"""Count of items in a bin from which counts are drawn on a logarithmic scale."""
_BAR_WIDTH = 0.42
"""Share of a bin."""
_DEFAULT = 0.5
"""Threshold of `predict` unless another is given."""
_WHOLE = {"xlim": (0, 1), "ylim": (-0.02, 1.02)}


def draw_reliability(classifier: Classifier) -> tuple[Figure, str]:
    """Observed share of virus against the claimed probability, and of how many items."""
    figure = empty_figure(5.5)
    upper, lower = figure.subplots(2, 2, sharex="col", height_ratios=(3, 1.4))
    figure.suptitle(f"Held out: {classifier.measured_on}", fontsize=13)
    words = []
    for items, diagram, counts in zip(ITEMS, upper, lower, strict=True):
        stages = {stage: classifier.reliability[f"{items}_{stage}"] for stage in STAGES}
        name = f"{stages['after'].n.sum():,} {NAMES[items]}"
        diagram.set_title(name)
        _draw_shares(diagram, stages)
        _draw_counts(counts, stages)
        where = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.6), "borderaxespad": 0}
        counts.legend(*diagram.get_legend_handles_labels(), frameon=False, **where)
        errors = (f"{bins.expected_calibration_error:.3f} {key}" for key, bins in stages.items())
        words.append(f"{name}: {', '.join(errors)}; {_widest_gap(stages['after'])}.")
    upper[0].set_ylabel("Observed share of virus")
    lower[0].set_ylabel("Items in bin")
    figure.align_ylabels()
    return figure, (
        f"Reliability diagrams of the held-out {classifier.measured_on} part: the observed share "
        "of virus against the claimed probability, before and after calibration. On the diagonal "
        "both are equal; the bars below tell how many items are in each bin. Expected calibration "
        f"error (ECE) of {' Of '.join(words)}"
    )


def _draw_shares(axis: Axes, stages: Mapping[str, Reliability]) -> None:
    """Draw a point for each bin with items, joined to those of the bins beside it."""
    axis.plot([0, 1], [0, 1], color="black", linewidth=0.8)
    for stage, bins in stages.items():
        label = f"{stage}: ECE {bins.expected_calibration_error:.3f}"
        style = {"clip_on": False, "zorder": 3, **_POINTS[stage]}
        axis.plot(bins.mean_probability, bins.observed, label=label, **style)
    axis.set(**_WHOLE, xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    axis.set_box_aspect(1)


def _draw_counts(axis: Axes, stages: Mapping[str, Reliability]) -> None:
    """Draw two bars for each bin: its items before and after."""
    for place, (stage, bins) in enumerate(stages.items()):
        width = _BAR_WIDTH * (bins.upper - bins.lower)
        middle = (bins.lower + bins.upper) / 2 + (place - 0.5) * width
        used = bins.n > 0
        axis.bar(middle[used], bins.n[used], width[used], **_BARS[stage])
    axis.set(xlabel="Claimed probability", xlim=(0, 1))
    if max(bins.n.max() for bins in stages.values()) >= _LOG_FROM:
        axis.set(yscale="log", ylim=(0.7, None))
        axis.yaxis.set_major_locator(LogLocator(numticks=4))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter(EngFormatter(sep=""))
    else:
        axis.yaxis.set_major_locator(MaxNLocator(3, integer=True))


def _widest_gap(bins: Reliability) -> str:
    """The bin in which what is claimed and what is true are furthest apart."""
    gaps = np.abs(bins.mean_probability - bins.observed)
    if np.isnan(gaps).all():
        return "there are no items"
    widest = int(np.nanargmax(gaps))
    return (
        f"both are then furthest apart from {bins.lower[widest]:g} to {bins.upper[widest]:g}, "
        f"{bins.mean_probability[widest]:.3f} claimed and {bins.observed[widest]:.3f} observed "
        f"(items: {bins.n[widest]:,})"
    )


def draw_thresholds(classifier: Classifier) -> tuple[Figure, str]:
    """Precision, recall, false positive rate and F1 against the threshold."""
    figure, axes = new_figure(6.6, 2)
    words = []
    for items, axis in zip(ITEMS, axes, strict=True):
        calls = classifier.thresholds[items]
        for measure, name in MEASURES.items():
            axis.plot(calls.thresholds, getattr(calls, measure), label=name, **_LINES[measure])
        axis.axvline(_DEFAULT, color="black", linewidth=0.8, label=f"{_DEFAULT:g}, the default")
        title = f"{calls.n[0]:,} {NAMES[items]}, {calls.n_virus[0]:,} of them virus"
        axis.set(**_WHOLE, xlabel=f"Threshold of {_SCORES[items]}", ylabel="Share")
        axis.set_title(title)
        words.append(f"{title}: {_at_default(calls)}")
    figure.suptitle(f"Held out: {classifier.measured_on}", fontsize=13)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure, (
        f"Lines of precision, recall, F1 and false positive rate of the held-out "
        f"{classifier.measured_on} part against the threshold, with a line at the default, "
        f"{_DEFAULT:g}. {' '.join(words)}"
    )


def _at_default(calls: Confusion) -> str:
    """The measures at the threshold nearest to the default, and where F1 is highest."""
    place = int(np.abs(calls.thresholds - _DEFAULT).argmin())
    values = {name: getattr(calls, measure)[place] for measure, name in MEASURES.items()}
    shown = ", ".join(
        f"{name} not defined" if np.isnan(value) else f"{name} {value:.3f}"
        for name, value in values.items()
    )
    words = f"at {calls.thresholds[place]:g} {shown}"
    if np.isnan(calls.f1).all():
        return f"{words}."
    best = int(np.nanargmax(calls.f1))
    return f"{words}; F1 is highest at {calls.thresholds[best]:g}, {calls.f1[best]:.3f}."
