"""`calibration.tsv` and `thresholds.tsv` as they were measured, each checked by its own sums.

What is drawn is worked out from the counts again: a table that was cut off or changed by hand is
refused, and not drawn with a gap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from virnucpro_pl.errors import InputError
from virnucpro_pl.measures import Confusion, Reliability
from virnucpro_pl.plot.tables import parse, read_columns

_CALLS = Confusion._fields[1:]


def read_reliability(path: Path, names: Sequence[str]) -> dict[str, Reliability]:
    """Read the bins of each set of probabilities.

    Args:
        path: `calibration.tsv`.
        names: The sets, as the column `of` has them.

    Raises:
        InputError: If the table is damaged, or lacks one of them.
    """
    counts, means = ("n", "n_virus"), ("lower", "upper", "mean_probability", "brier_score")
    found = {}
    for name, lines in _parts(path, names, (*means, *counts)):
        n, n_virus = (parse(path, lines[column], int) for column in counts)
        lower, upper, claimed, brier = (parse(path, lines[column], _number) for column in means)
        totals = [np.where(n == 0, 0.0, n * values) for values in (claimed, brier)]
        edges = np.append(lower[:-1], 1.0)  # the last line is of all bins
        whole = (
            len(lines) > 1
            and (lower[0], lower[-1], upper[-1]) == (0, 0, 1)
            and np.array_equal(upper[:-1], edges[1:])
            and (np.diff(edges) > 0).all()
            and all(column[:-1].sum() == column[-1] for column in (n, n_virus))
            and ((n_virus >= 0) & (n_virus <= n)).all()
            and all(((total >= 0) & (total <= n)).all() for total in totals)
        )
        _check(path, name, whole)
        columns = (lower, upper, n, n_virus, *totals)
        found[name] = Reliability(*(column[:-1] for column in columns))
    return found


def read_thresholds(path: Path, names: Sequence[str]) -> dict[str, Confusion]:
    """Read the counts at each threshold of each set of items, all at the same thresholds.

    Args:
        path: `thresholds.tsv`.
        names: The sets, as the column `of` has them.

    Raises:
        InputError: If the table is damaged, or lacks one of them.
    """
    found: dict[str, Confusion] = {}
    for name, lines in _parts(path, names, ("threshold", "n", "n_virus", *_CALLS)):
        thresholds = parse(path, lines["threshold"], float)
        counts = [parse(path, lines[column], int) for column in _CALLS]
        confusion = Confusion(thresholds, *counts)
        expected = next(iter(found.values()), confusion).thresholds
        whole = (
            np.array_equal(thresholds, expected)
            and (np.diff(thresholds, prepend=-np.inf) > 0).all()
            and min(column.min() for column in counts) >= 0
            and (parse(path, lines["n"], int) == confusion.n).all()
            and (parse(path, lines["n_virus"], int) == confusion.n_virus).all()
            and np.ptp(confusion.n) == np.ptp(confusion.n_virus) == 0
        )
        _check(path, name, whole)
        found[name] = confusion
    return found


def _parts(
    path: Path, names: Sequence[str], columns: Sequence[str]
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the lines of each set, at least one of each."""
    table = pd.concat(list(read_columns(path, ["of", *columns])))
    for name in names:
        lines = table[table["of"] == name]
        if not len(lines):
            raise InputError(
                f"{path} has no line of {name}: it is cut off, or not as fit writes it"
            )
        yield name, lines


def _check(path: Path, name: str, whole: Any) -> None:
    if not whole:
        raise InputError(
            f"{path}: the lines of {name} are not whole, or do not add up. Let fit write it again"
        )


def _number(text: str) -> float:
    """A number, or NaN where a measure is not defined."""
    return float("nan") if text == "NA" else float(text)
