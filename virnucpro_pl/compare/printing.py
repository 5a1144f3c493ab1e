"""The differences of two files as text and a table, for people."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from virnucpro_pl.compare.rows import Rows
from virnucpro_pl.compare.score_table import TableDifference
from virnucpro_pl.compare.vectors import FENCE, Figures, VectorDifference
from virnucpro_pl.errors import MAX_LISTED

log = logging.getLogger(__name__)

_PLAIN_PROVES_NOTHING = (
    "The plain cosine alone proves nothing: vectors of one model share a direction, so that "
    "different sequences come near 1, too. Judge by the centred one: the mean vector of A was "
    "subtracted from both."
)
_RANGES = {"short": "short, < 50", "medium": "medium, 50-200", "long": "long, > 200"}
_FIGURES = (
    ("records", "{0.records:,}"),
    ("plain cosine: min", "{0.cosine.min:.7f}"),
    ("  1 % quantile", "{0.cosine.percentile_1:.7f}"),
    ("  median", "{0.cosine.median:.7f}"),
    ("centred cosine: min", "{0.centred_cosine.min:.7f}"),
    ("  1 % quantile", "{0.centred_cosine.percentile_1:.7f}"),
    ("  median", "{0.centred_cosine.median:.7f}"),
    ("largest difference", "{0.largest_difference:.3g}"),
    ("norm of B over A: mean", "{0.norm_ratio:.6f}"),
    ("  range", "{0.norm_ratio_range[0]:.5f}-{0.norm_ratio_range[1]:.5f}"),
    ("mean, A | B", "{0.mean[0]:.1e} | {0.mean[1]:.1e}"),
    (
        "st. deviation, A | B",
        "{0.standard_deviation[0]:.5f} | {0.standard_deviation[1]:.5f}",
    ),
    (f"outliers (> {FENCE:g} sd), A | B", "{0.outliers[0]:,} | {0.outliers[1]:,}"),
)
"""Lines of the table of figures: a label, and how a class's `Figures` are shown."""


def print_difference(
    result: VectorDifference | TableDifference,
    paths: tuple[Path, Path],
    kinds: list[str | None],
) -> None:
    """Print what is said of two files to stdout; `kinds` are what they hold, if known."""
    console = Console(file=sys.stdout, width=120, highlight=False, markup=False, emoji=False)
    lines = [
        f"{name}: {path} ({kind or 'embeddings'}, {total} rows)"
        for name, path, kind, total in zip("AB", paths, kinds, result.rows.total, strict=True)
    ]
    lines += _row_lines(result.rows)
    if isinstance(result, TableDifference):
        lines += _table_lines(result)
    console.print("\n".join(lines), soft_wrap=True)
    if isinstance(result, TableDifference):
        return
    if result.other_lengths:
        log.warning(
            "%d records have another length in B: the files are not of the same sequences",
            result.other_lengths,
        )
    if result.classes:
        console.print(_figure_table(result.classes))
    for line in _neighbour_lines(result):
        console.print(line, soft_wrap=True)
    console.print(_PLAIN_PROVES_NOTHING)


def _row_lines(rows: Rows) -> list[str]:
    lines = [f"Compared: {rows.compared} records"]
    for what, both in (
        ("Only in", rows.only),
        ("Failed, so listed in the file, not compared, in", rows.failed),
        ("NaN or Inf, though not listed as failed, not compared, in", rows.not_finite),
    ):
        for name, named in zip("AB", both, strict=True):
            if named.number:
                lines.append(f"{what} {name}: {named.number}: {named.listed(5)}")
    return lines


def _table_lines(result: TableDifference) -> list[str]:
    flips = result.flips
    lines = [
        f"Label flips: {flips.number} ({result.to_virus} viral only in B, "
        f"{result.from_virus} only in A)"
    ]
    if flips.number:
        lines.append(f"  {flips.listed(MAX_LISTED)}")
    if result.largest_change is not None:
        lines.append(
            f"Largest score change: {result.largest_change:.3g} ({result.largest_change_id}); "
            f"mean {result.mean_change:.3g}"
        )
    return lines


def _neighbour_lines(result: VectorDifference) -> list[str]:
    near, lines = result.neighbours, []
    if near.same is not None:
        lines.append(f"Same nearest neighbour: {near.same:.2%} of {near.sample} records")
        lines.append(
            f"Plain cosine of different records of A: {near.cosine_of_others:.4f} (median)"
        )
    if result.worst:
        worst = result.worst[0]
        length = "" if worst.length is None else f", length {worst.length}"
        lines.append(
            f"Furthest apart: {worst.id} (centred cosine {worst.centred_cosine:.7f}, "
            f"plain {worst.cosine:.7f}{length})"
        )
    return lines


def _figure_table(classes: dict[str, Figures]) -> Table:
    table = Table()
    table.add_column("")
    for name in classes:
        table.add_column(_RANGES.get(name, name), justify="right")
    for label, shown in _FIGURES:
        table.add_row(label, *(shown.format(figures) for figures in classes.values()))
    return table
