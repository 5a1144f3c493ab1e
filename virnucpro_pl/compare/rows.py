"""Which rows two files share, which only one of them has, and which have no finite numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro_pl.embeddings.id_table import IdTable, Match
from virnucpro_pl.errors import MAX_LISTED


class Named(NamedTuple):
    """Some rows: how many, and the ids of the first of them."""

    number: int
    first_ids: list[str]

    def listed(self, limit: int) -> str:
        """Join the first ids for a message, then say how many more rows there are."""
        shown = ", ".join(self.first_ids[:limit])
        return shown if self.number <= limit else f"{shown} and {self.number - limit} more"


class Rows(NamedTuple):
    """What became of the rows of A and B; pairs are of A and of B."""

    total: tuple[int, int]
    compared: int
    only: tuple[Named, Named]
    """Ids that the other file lacks."""
    failed: tuple[Named, Named]
    """Shared rows without numbers that the file lists as failed: counted, not compared."""
    not_finite: tuple[Named, Named]
    """Shared rows with NaN or Inf that no list excuses: not compared, and no gate passes them."""


def describe_rows(
    totals: tuple[int, int],
    match: Match,
    ids: tuple[IdTable, IdTable],
    finite: Sequence[NDArray[np.bool_]],
    listed: Sequence[NDArray[np.bool_]],
) -> Rows:
    """Count rows by what became of them.

    Args:
        totals: Rows of A and B.
        match: How they belong together.
        ids: Of A and B.
        finite: (S,) each, which of the shared rows have finite numbers in A and in B.
        listed: (S,) each, which of them the file itself lists as failed.
    """
    sides = list(zip(ids, (match.first, match.second), finite, listed, strict=True))
    failed = [named(table, rows[of]) for table, rows, _, of in sides]
    strange = [named(table, rows[~fine & ~of]) for table, rows, fine, of in sides]
    fine = finite[0] & finite[1] & ~listed[0] & ~listed[1]
    return Rows(
        totals,
        int(np.count_nonzero(fine)),
        (named(ids[0], match.only_first), named(ids[1], match.only_second)),
        (failed[0], failed[1]),
        (strange[0], strange[1]),
    )


def named(table: IdTable, rows: NDArray[np.int64]) -> Named:
    """Count rows, and name the first of them."""
    return Named(len(rows), table(rows[:MAX_LISTED]))
