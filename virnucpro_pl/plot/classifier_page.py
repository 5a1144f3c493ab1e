"""Which pictures are drawn of a classifier, and what their page says."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from virnucpro_pl.measures import Reliability
from virnucpro_pl.plot.classifier import ITEMS, STAGES, Classifier, Size, read_classifier
from virnucpro_pl.plot.curves import NAMES, draw_reliability, draw_thresholds
from virnucpro_pl.plot.figures import make_picture
from virnucpro_pl.plot.page import Listing, Picture, make_page
from virnucpro_pl.version import __version__

_METRICS = {
    **{"accuracy": "Accuracy", "precision": "Precision", "recall": "Recall", "f1": "F1"},
    **{"mcc": "Matthews correlation", "auroc": "AUROC"},
    **{"average_precision": "Average precision", "loss": "Loss"},
}
"""Metrics that are listed, and their names."""
_FACTS = ("checkpoint", "features", "chunk_length", "package_version", "torch_version")


def draw_classifier(path: Path) -> tuple[list[Picture], str]:
    """Pictures of a classifier that `fit` has written, and the page with all of them.

    Args:
        path: The folder.

    Raises:
        InputError: If a file is missing or damaged.
    """
    classifier = read_classifier(path)
    pictures = [
        make_picture(name, title, partial(draw, classifier))
        for name, title, draw in (
            ("reliability", "What probabilities are worth", draw_reliability),
            ("thresholds", "Calls by the threshold", draw_thresholds),
        )
    ]
    page = make_page(
        f"Classifier: {path.absolute().name}",
        _lead(classifier),
        pictures,
        _tables(classifier),
        _warnings(classifier),
        [],
        __version__,
        _listing(classifier),
    )
    return pictures, page


def _lead(classifier: Classifier) -> str:
    part = classifier.measured_on
    return (
        f"The classifier of epoch {classifier.epoch}, trained on {_all(classifier.training)}. "
        f"The pictures are of the held-out part {part}: {_all(classifier.held_out[part])}."
    )


def _all(sizes: dict[str, Size]) -> str:
    return " of ".join(f"{sizes[items].n:,} {NAMES[items]}" for items in ITEMS)


def _warnings(classifier: Classifier) -> list[str]:
    if classifier.learnt_on != classifier.measured_on:
        return []
    return [
        f"These figures are of the {classifier.learnt_on} records, by which the best epoch was "
        "chosen and the calibration learnt: they flatter. With --data.test_fraction 0.1 fit holds "
        "out others, and the figures are of those."
    ]


def _listing(classifier: Classifier) -> Listing:
    """What each held-out part has and gives, ORFs and records beside each other."""
    parts = [(part, items) for part in classifier.held_out for items in ITEMS]
    columns = [_column(classifier, part, items) for part, items in parts]
    header = ["Measure", *(f"{part}: {NAMES[items]}" for part, items in parts)]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [[name, *(column.get(name, "") for column in columns)] for name in names]
    return Listing("Held out", header, rows, {})


def _column(classifier: Classifier, part: str, items: str) -> dict[str, str]:
    size, metrics = classifier.held_out[part][items], classifier.metrics[part][items]
    cells = {"Items": f"{size.n:,}", "Virus": f"{size.virus:,}"}
    cells |= {name: _decimals(metrics[key]) for key, name in _METRICS.items() if key in metrics}
    if part == classifier.measured_on:
        bins = {stage: classifier.reliability[f"{items}_{stage}"] for stage in STAGES}
        for stage, known in bins.items():
            cells[f"ECE {stage} calibration"] = _decimals(known.expected_calibration_error)
        for stage, known in bins.items():
            cells[f"Brier score {stage} calibration"] = _decimals(known.brier_score)
    return cells


def _tables(classifier: Classifier) -> dict[str, dict[str, Any]]:
    content = classifier.content
    tables: dict[str, dict[str, Any]] = {
        "The training": {
            "epoch": classifier.epoch,
            **{name: content[name] for name in _FACTS if content.get(name) is not None},
            **{
                f"prevalence of virus, {NAMES[of]}": f"{classifier.prevalence[of]:.4f}"
                for of in ITEMS
            },
            **classifier.options,
        },
        "The split": {
            f"{part}: {kind}": f"{getattr(sizes['orfs'], kind):,} ORFs of "
            f"{getattr(sizes['records'], kind):,} records"
            for part, sizes in {"train": classifier.training, **classifier.held_out}.items()
            for kind in Size._fields
        },
        "The calibration": {
            "learnt on": classifier.learnt_on,
            **{name: _decimals(value) for name, value in classifier.calibration.items()},
        },
    }
    for of in ITEMS:
        for stage in STAGES:
            bins = classifier.reliability[f"{of}_{stage}"]
            tables[f"Bins of {NAMES[of]} {stage} calibration"] = _bins(bins)
    return tables


def _bins(bins: Reliability) -> dict[str, str]:
    """The bins that have items."""
    return {
        f"{bins.lower[i]:g} to {bins.upper[i]:g}": f"{bins.n[i]:,} in it, "
        f"{bins.mean_probability[i]:.3f} claimed, {bins.observed[i]:.3f} observed"
        for i in np.flatnonzero(bins.n)
    }


def _decimals(value: float) -> str:
    return f"{value:.4f}" if np.isfinite(value) else "NA"
