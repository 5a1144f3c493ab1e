"""Rows with equal sequences, side by side, so that each distinct sequence is computed once.

Sequences are compared by hashes, and then by their letters where these are equal: which rows are of
one group depends on the sequences alone, whatever the hash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro_pl.input.packing import plan_packs
from virnucpro_pl.input.records import map_array, write_array

COPY, VARIANT, FIRST = 0, 1, 2
"""What a row is in its group: its first one; another one, with a second sequence that none before
it has; or one that brings nothing new."""
COPIES = 8192
"""Rows beyond the first of their group that a pack holds at most: each gets a vector of its own on
the host. Of a larger group the sequence is computed once for so many rows, which takes less time
than to write them."""
Tokens = Callable[[NDArray[np.int64]], NDArray[np.float64]]
"""Gives the tokens of some rows' sequences."""
_FILES = "groups.rows", "groups.level"
_COUNT = "groups.count"
"""How many rows both files have, 0 where none has the sequence of another. A rank that did not see
this, on a disk that several nodes share, would plan other packs."""
_ROWS, _LETTERS = 1 << 16, 1 << 24
"""Rows, and letters of their sequences, that are in memory at a time."""


class Sequences(NamedTuple):
    """One sequence of each row, for M rows."""

    total: int
    """M."""
    lengths: Callable[[NDArray[np.int64]], NDArray[np.int64]]
    """Gives the letters (n,) that those of some rows have."""
    of: Callable[[NDArray[np.int64]], list[bytes]]
    """Gives those of some rows."""


class Groups:
    """All rows of an input, those with equal sequences one behind the other; mapped from disk.

    A row may have a second sequence, as an ORF has nucleotides beside its protein. The first ones
    decide which rows are of one group; within it, equal second ones are one behind the other.

    Attributes:
        rows: (M,) int64 rows; groups in the order of their first rows.
        level: (M,) uint8 COPY, VARIANT or FIRST, what each of these is in its group.
    """

    def __init__(self, folder: Path) -> None:
        """Map them; see `groups_in`."""
        self.rows: NDArray[np.int64] = map_array(folder / _FILES[0], np.int64)
        self.level: NDArray[np.uint8] = map_array(folder / _FILES[1], np.uint8)

    def count(self, level: int) -> int:
        """Count the distinct sequences: those of FIRST, or of FIRST and VARIANT together."""
        return int(np.count_nonzero(self.level >= level))

    def plan(self, tokens: NDArray[np.float64], second: Tokens, budget: int) -> list[range]:
        """Cut the rows into packs of whole groups, as `plan_packs` does with distinct sequences.

        A group of too many tokens or rows gets a pack of its own.

        Args:
            tokens: (M,) tokens of each row's sequence.
            second: Gives the tokens of some rows' second sequences.
            budget: Tokens that a pack may hold of distinct sequences, first and second apart.

        Returns:
            Packs as ranges of places in `rows`.
        """
        edges = np.append(np.flatnonzero(self.level == FIRST), len(self.rows))
        besides: list[tuple[NDArray[Any], float]] = [(np.diff(edges) - 1, COPIES)]
        if (self.level == VARIANT).any():
            distinct = np.flatnonzero(self.level > COPY)
            of_group = np.flatnonzero(self.level[distinct] == FIRST)
            amounts = np.add.reduceat(second(self.rows[distinct]), of_group)
            besides.append((amounts, budget))
        packs = plan_packs(tokens[self.rows[edges[:-1]]], budget, specials=0, besides=besides)
        return [range(int(edges[p.start]), int(edges[p.stop])) for p in packs]

    def cut(self, pack: range, second: Tokens, budget: int) -> list[range]:
        """Cut a pack of a single group that is too large for one batch; others stay whole.

        The first sequence is computed for each piece, alone. Rows with equal second sequences are
        in one piece, or in several that hold no others: all of them get the same numbers.
        """
        level = self.level[pack.start : pack.stop]
        if len(pack) == 1 or np.count_nonzero(level == FIRST) > 1:
            return [pack]
        edges = pack.start + np.append(np.flatnonzero(level > COPY), len(pack))
        tokens, most = second(self.rows[edges[:-1]]), COPIES + 1
        pieces = plan_packs(tokens, budget, specials=0, besides=[(np.diff(edges), most)])
        return [
            range(start, min(start + most, int(edges[piece.stop])))
            for piece in pieces
            for start in range(int(edges[piece.start]), int(edges[piece.stop]), most)
        ]

    def whole(self, done: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which rows are done together with all others of their group: flags (M,), as given."""
        edges = np.append(np.flatnonzero(self.level == FIRST), len(self.rows))
        together = np.logical_and.reduceat(done[self.rows], edges[:-1])
        whole = np.zeros_like(done)
        whole[self.rows] = np.repeat(together, np.diff(edges))
        return whole


def groups_in(folder: Path) -> Groups | None:
    """The groups that `write_groups` has found; None where no row has the sequence of another.

    Raises:
        OSError: If this rank does not see all of them.
    """
    count = int((folder / _COUNT).read_text())
    if not count:
        return None
    groups = Groups(folder)
    if not len(groups.rows) == len(groups.level) == count:
        raise OSError(f"{folder / _FILES[0]} is not whole as this rank sees it")
    return groups


def write_groups(folder: Path, sequences: Sequences, second: Sequences | None = None) -> None:
    """Find the rows with equal sequences, and write them, if there are any.

    Args:
        folder: Where to.
        sequences: What decides which rows are of one group.
        second: What may be equal besides, within a group.

    Raises:
        OSError: If they cannot be written.
    """
    first = find_first(sequences)
    repeated = np.flatnonzero(first != np.arange(len(first)))
    if not len(repeated):
        (folder / _COUNT).write_text("0")
        return
    several = np.zeros(len(first), np.bool_)
    several[repeated] = several[first[repeated]] = True
    del repeated
    rows = np.argsort(first, kind="stable")
    level = _changes(first[rows]).view(np.uint8) * np.uint8(FIRST)
    if second is not None:
        places = np.flatnonzero(several[rows])
        alike = rows[places]
        variant = find_first(second, alike)
        order = np.lexsort((variant, first[alike]))
        alike, variant = alike[order], variant[order]
        rows[places] = alike
        brings_new = _changes(first[alike]) | _changes(variant)
        level[places] = np.maximum(level[places], np.where(brings_new, VARIANT, COPY))
    write_array(folder / _FILES[0], rows)
    write_array(folder / _FILES[1], level)
    (folder / _COUNT).write_text(str(len(rows)))


def find_first(sequences: Sequences, rows: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Find for each of some rows the first of them that has the same sequence.

    Args:
        sequences: Those of all rows.
        rows: (n,) rows in any order; None for all.

    Returns:
        (n,) its place among these rows.
    """
    count = sequences.total if rows is None else len(rows)
    hashes = np.empty(count, np.int64)
    for start in range(0, count, _ROWS):
        places = np.arange(start, min(start + _ROWS, count))
        for block, strings in _blocks(sequences, places, rows):
            hashes[block] = np.fromiter(map(hash, strings), np.int64, len(strings))
    order = np.argsort(hashes, kind="stable")
    hashes.sort()  # as in this order, without memory for another copy
    new = _changes(hashes)
    del hashes
    alike = np.flatnonzero(~(new & np.append(new[1:], True)))
    order, new = order[alike], new[alike]
    del alike
    first = np.arange(count)
    known: dict[bytes, int] = {}
    for start in range(0, len(order), _ROWS):
        part = slice(start, start + _ROWS)
        has_new_hash = iter(new[part].tolist())
        for block, strings in _blocks(sequences, order[part], rows):
            for place, string in zip(block.tolist(), strings, strict=True):
                if next(has_new_hash):
                    known = {}
                first[place] = known.setdefault(string, place)
    return first


def _blocks(
    sequences: Sequences, places: NDArray[np.int64], rows: NDArray[np.int64] | None
) -> Iterator[tuple[NDArray[np.int64], list[bytes]]]:
    """Give places, and the sequences of the rows there, so many letters at a time."""
    wanted = places if rows is None else rows[places]
    for block in plan_packs(sequences.lengths(wanted), _LETTERS, specials=0):
        part = slice(block.start, block.stop)
        yield places[part], sequences.of(wanted[part])


def _changes(values: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(n,) whether each value differs from the one before it."""
    return np.append(True, values[1:] != values[:-1])[: len(values)]
