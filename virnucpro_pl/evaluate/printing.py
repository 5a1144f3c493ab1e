"""The figures as text and tables, for people."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from virnucpro_pl.errors import MAX_LISTED
from virnucpro_pl.evaluate.contig_table import PREDICTIONS
from virnucpro_pl.evaluate.evaluation import Evaluation, Missing
from virnucpro_pl.evaluate.figures import CLASSES, Figures, Part
from virnucpro_pl.measures import Reliability

_SHOWN = range(4, 99, 10)
"""Thresholds that are printed: 0.05, 0.15 and so on to 0.95."""
_OF_ALL = (
    "Figures are of the records that have a score; those `of all` count a record without one as "
    "not called virus, so that a virus without a score is missed."
)
_FIGURES = {
    "records": "records",
    "virus": "of them virus",
    "not_scored": "not scored",
    "virus_not_scored": "of them virus",
    "precision": "precision",
    "recall": "recall",
    "recall_of_all": "recall of all",
    "false_positive_rate": "false positive rate",
    "false_positive_rate_of_all": "false positive rate of all",
    "f1": "F1",
    "f1_of_all": "F1 of all",
    "accuracy": "accuracy",
    "accuracy_of_all": "accuracy of all",
    "matthews_correlation": "Matthews correlation",
    "matthews_correlation_of_all": "Matthews correlation of all",
    "auroc": "AUROC (virus_score)",
    "average_precision": "average precision (virus_score)",
}


def print_evaluation(result: Evaluation) -> None:
    """Print what was found to stdout."""
    console = Console(file=sys.stdout, width=120, highlight=False, markup=False, emoji=False)
    figures = result.figures
    console.print("\n".join(_heading(result)), soft_wrap=True)
    console.print(_predictions(figures.whole))
    parts = {"all": figures.whole, **figures.by_length}
    console.print(_by_length(parts))
    console.print(_thresholds(figures.whole))
    console.print(_OF_ALL, soft_wrap=True)
    if figures.tiers:
        console.print(_tiers(figures))
    for line in _calibration(result):
        console.print(line, soft_wrap=True)
    if figures.discoveries:
        console.print(_discoveries(figures))


def _heading(result: Evaluation) -> list[str]:
    others, virus = result.figures.whole.table.sum(axis=0).tolist()
    lines = [
        f"Results: {result.results} ({result.n_results:,} records)",
        f"Truth: {result.truth} ({result.n_labels:,} labels)",
        f"Measured: {others + virus:,} records with both: {virus:,} virus, {others:,} others",
    ]
    for what, missing in (
        ("Without a label, not measured", result.without_label),
        ("With a label, but not in the results", result.without_result),
    ):
        if len(missing.rows):
            lines.append(f"{what}: {len(missing.rows):,}: {_listed(missing)}")
    return lines


def _listed(missing: Missing) -> str:
    shown = ", ".join(missing.ids(missing.rows[:MAX_LISTED]))
    more = len(missing.rows) - MAX_LISTED
    return f"{shown} and {more:,} more (--output FOLDER lists all)" if more > 0 else shown


def _predictions(part: Part) -> Table:
    table = _table("Prediction against truth", ("", "virus", "others"))
    for name in ("virus", "others", "NA"):
        others, virus = part.table[PREDICTIONS.index(name)].tolist()
        table.add_row("not scored" if name == "NA" else f"predicted {name}", *_cells(virus, others))
    return table


def _by_length(parts: dict[str, Part]) -> Table:
    table = _table("By prediction, and by length in bases", ("", "all", *CLASSES))
    summaries = [part.summary() for part in parts.values()]
    for name, shown in _FIGURES.items():
        table.add_row(shown, *_cells(*(summary[name] for summary in summaries)))
    return table


def _thresholds(part: Part) -> Table:
    columns = ("at least", "called", "precision", "recall", "recall of all", "false positive rate")
    table = _table("By virus_score", (*columns, "F1"))
    scored, of_all = part.at_thresholds, part.of_all_at_thresholds
    called = scored.true_positives + scored.false_positives
    measured = (scored.precision, scored.recall, of_all.recall)
    for row in _SHOWN:
        numbers = (called, *measured, scored.false_positive_rate, scored.f1)
        cells = _cells(*(column[row].item() for column in numbers))
        table.add_row(f"{scored.thresholds[row]:.2f}", *cells)
    return table


def _tiers(figures: Figures) -> Table:
    table = _table("Calls and tiers", ("call", "tier", "records", "of them virus", "right"))
    for row in figures.tiers:
        table.add_row(row.call, row.tier, *_cells(row.n, row.n_virus, row.right))
    return table


def _calibration(result: Evaluation) -> Iterable[Any]:
    bins = result.figures.calibration
    if bins is None:
        yield (
            "No virus_probability: the classifier knows no calibration, so that neither "
            "probabilities nor false discovery rates can be judged."
        )
        return
    yield _reliability(bins)
    yield (
        f"Of {int(bins.n.sum()):,} records with a virus_probability: expected calibration error "
        f"{bins.expected_calibration_error:.4f}, Brier score {bins.brier_score:.4f}."
    )


def _reliability(bins: Reliability) -> Table:
    columns = ("virus_probability", "records", "mean", "virus in truth")
    table = _table("Calibration", columns)
    for lower, upper, *numbers in zip(
        bins.lower, bins.upper, bins.n, bins.mean_probability, bins.observed, strict=True
    ):
        table.add_row(f"{lower:.1f}-{upper:.1f}", *_cells(*(n.item() for n in numbers)))
    return table


def _discoveries(figures: Figures) -> Table:
    columns = ("fdr at most", "called", "false, as claimed", "false, as observed")
    table = _table("False discovery rate", columns)
    for row in figures.discoveries:
        table.add_row(f"{row.level:g}", *_cells(row.n, row.claimed, row.observed))
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="")
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place else "left")
    return table


def _cells(*numbers: float) -> list[str]:
    """Show counts whole, and fractions with four digits."""
    shown = (f"{n:,}" if isinstance(n, int) else f"{n:.4f}" for n in numbers)
    return ["NA" if text == "nan" else text for text in shown]
