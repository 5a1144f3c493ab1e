"""Which rows two files share, which only one of them has, and which have no finite numbers."""

from __future__ import annotations

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
    finite: NDArray[np.bool_],
    listed: NDArray[np.bool_],
) -> tuple[Rows, NDArray[np.bool_]]:
    """Count rows by what became of them, and tell which (S,) of the shared rows are compared.

    Args:
        totals: Rows of A and B.
        match: How they belong together.
        ids: Of A and B.
        finite: (2, S) which of the shared rows have finite numbers in A and in B.
        listed: (2, S) which of them the file itself lists as failed.
    """

    def both(flags: NDArray[np.bool_]) -> tuple[Named, Named]:
        return named(ids[0], match.first[flags[0]]), named(ids[1], match.second[flags[1]])

    compared = np.all(finite & ~listed, axis=0)
    only = named(ids[0], match.only_first), named(ids[1], match.only_second)
    count = int(np.count_nonzero(compared))
    return Rows(totals, count, only, both(listed), both(~finite & ~listed)), compared


def named(table: IdTable, rows: NDArray[np.int64]) -> Named:
    """Count rows, and name the first of them."""
    return Named(len(rows), table(rows[:MAX_LISTED]))
