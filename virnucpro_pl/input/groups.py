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

from virnucpro_pl.input.packing import cut_by_sums, plan_packs
from virnucpro_pl.input.records import map_array, write_array

COPY, VARIANT, FIRST = 0, 1, 2
"""What a row brings to those before it in its group: nothing new, a second sequence that none of
them has, or the group itself."""
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
        starts = self.level == FIRST
        copies = _copies_until(starts)
        sums = tokens[self.rows[starts]]
        bounds = [(np.cumsum(sums, out=sums), float(budget)), (copies, COPIES)]
        if (self.level == VARIANT).any():
            amounts = self._second_of_groups(starts, second)
            bounds.append((np.cumsum(amounts, out=amounts), budget))

        def place(group: int) -> int:
            return group + int(copies[group - 1]) if group else 0

        return [range(place(p.start), place(p.stop)) for p in cut_by_sums(bounds)]

    def _second_of_groups(self, starts: NDArray[np.bool_], second: Tokens) -> NDArray[np.float64]:
        """(G,) tokens of the second sequences of each group, equal ones counted once."""
        amounts, end = np.empty(np.count_nonzero(starts)), 0
        for part in _whole_groups(starts):
            distinct = part.start + np.flatnonzero(self.level[part] > COPY)
            of_group = np.flatnonzero(starts[distinct])
            found = np.add.reduceat(second(self.rows[distinct]), of_group)
            amounts[end : end + len(found)] = found
            end += len(found)
        return amounts

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
    if (first == np.arange(len(first), dtype=first.dtype)).all():
        (folder / _COUNT).write_text("0")
        return
    rows = np.argsort(first, kind="stable").astype(first.dtype)
    starts = _changes(first[rows])
    del first
    level = starts.view(np.uint8) * np.uint8(FIRST)
    if second is not None:
        for part in _whole_groups(starts):
            _order_groups(rows[part], level[part], second)
    with (folder / _FILES[0]).open("wb") as file:
        for part in _parts(len(rows)):
            write_array(file, rows[part].astype(np.int64))
    write_array(folder / _FILES[1], level)
    (folder / _COUNT).write_text(str(len(rows)))


def _order_groups(rows: NDArray[Any], level: NDArray[np.uint8], second: Sequences) -> None:
    """Put rows of a group with equal second sequences side by side, and tell which are variants.

    Args:
        rows: (n,) rows of whole groups; changed in place.
        level: (n,) FIRST for the first row of a group, COPY for any other; changed in place.
        second: The second sequences.
    """
    starts = level == FIRST
    several = ~starts
    several[:-1] |= ~starts[1:]
    alike, starts = rows[several], starts[several]
    if not len(alike):
        return
    variant = find_first(second, alike)
    order = np.lexsort((variant, np.cumsum(starts, dtype=variant.dtype)))
    rows[several] = alike[order]
    brings_new = _changes(variant[order]).view(np.uint8) * np.uint8(VARIANT)
    level[several] = np.maximum(level[several], brings_new)


def find_first(sequences: Sequences, rows: NDArray[Any] | None = None) -> NDArray[Any]:
    """Find for each of some rows the first of them that has the same sequence.

    Args:
        sequences: Those of all rows.
        rows: (n,) rows in any order; None for all.

    Returns:
        (n,) its place among these rows, int32 where that is enough.
    """
    count = sequences.total if rows is None else len(rows)
    places, new = _sharing_hashes(_sorted_keys(sequences, rows, count))
    first = np.arange(count, dtype=places.dtype)
    known: dict[bytes, int] = {}
    for part in _parts(len(places)):
        has_new_hash = iter(new[part].tolist())
        for block, strings in _blocks(sequences, places[part], rows):
            for place, string in zip(block.tolist(), strings, strict=True):
                if next(has_new_hash):
                    known = {}
                first[place] = known.setdefault(string, place)
    return first


def _sorted_keys(sequences: Sequences, rows: NDArray[Any] | None, count: int) -> NDArray[np.uint64]:
    """(n,) for each row its hash, of which the uppermost bits give way to its place below; sorted.

    One array holds both. Of a hash 40 bits are left for ten million rows: those few that share
    these by chance are told apart by their letters.
    """
    bits = _bits(count)
    keys = np.empty(count, np.uint64)
    for part in _parts(count):
        for block, strings in _blocks(sequences, np.arange(part.start, part.stop), rows):
            hashes = np.fromiter(map(hash, strings), np.int64, len(strings)).view(np.uint64)
            keys[block] = (hashes << bits) | block.view(np.uint64)
    keys.sort()
    return keys


def _sharing_hashes(keys: NDArray[np.uint64]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Places (m,) of rows whose hash others have, too, and whether it is the first with it."""
    bits = _bits(len(keys))
    new = _changes(keys, bits)
    shared = ~new
    shared[:-1] |= ~new[1:]
    # Most memory is in use here: eight bytes of each key, and four of each of these places.
    places = np.empty(np.count_nonzero(shared), np.int32 if len(keys) < 1 << 31 else np.int64)
    end = 0
    for part in _parts(len(keys)):
        found = keys[part][shared[part]] & ((np.uint64(1) << bits) - np.uint64(1))
        places[end : end + len(found)] = found
        end += len(found)
    return places, new[shared]


def _bits(count: int) -> np.uint64:
    """Bits that tell so many places apart."""
    return np.uint64(count.bit_length())


def _blocks(
    sequences: Sequences, places: NDArray[Any], rows: NDArray[Any] | None
) -> Iterator[tuple[NDArray[Any], list[bytes]]]:
    """Give places, and the sequences of the rows there, so many letters at a time."""
    wanted = (places if rows is None else rows[places]).astype(np.int64)
    for block in plan_packs(sequences.lengths(wanted), _LETTERS, specials=0):
        part = slice(block.start, block.stop)
        yield places[part], sequences.of(wanted[part])


def _parts(count: int) -> Iterator[slice]:
    """Cut so many rows into parts that are in memory at a time."""
    for start in range(0, count, _ROWS):
        yield slice(start, min(start + _ROWS, count))


def _whole_groups(starts: NDArray[np.bool_]) -> Iterator[slice]:
    """Cut rows into parts as `_parts` does, but none within a group."""
    start, count = 0, len(starts)
    while start < count:
        later = starts[start + _ROWS :]
        stop = start + _ROWS + int(later.argmax()) if later.any() else count
        yield slice(start, stop)
        start = stop


def _copies_until(starts: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(G,) rows beyond the first of their group, in each group and all before it."""
    firsts = np.flatnonzero(starts)
    copies = np.arange(-1.0, -1.0 - len(firsts), -1.0)
    copies[:-1] += firsts[1:]
    copies[-1:] += len(starts)
    return copies


def _changes(values: NDArray[Any], bits: np.uint64 | int = 0) -> NDArray[np.bool_]:
    """(n,) whether each value, without so many of its lowest bits, differs from the one before."""
    changes = np.ones(len(values), np.bool_)
    for part in _parts(len(values) - 1):
        pair = values[part.start : part.stop + 1] >> bits
        changes[part.start + 1 : part.stop + 1] = pair[1:] != pair[:-1]
    return changes
