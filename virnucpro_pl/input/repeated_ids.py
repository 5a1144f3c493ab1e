"""Ids that occur more than once in an input: refused, or told apart by what is put behind them.

Ids are compared by hashes, and then by their letters where these are equal, a block at a time:
nothing is kept for each record but some numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro_pl.input.faults import Faults
from virnucpro_pl.input.records import RecordStore

RepeatedIds = Literal["error", "mates", "number"]
"""What becomes of ids that occur more than once."""
_JOINTS: dict[RepeatedIds, str] = {"mates": "/", "number": "_"}
"""What stands between an id and its number."""
_BLOCK = 1 << 16
"""Records whose ids are in memory at a time."""
_ADVICE = (
    "Give each record an id of its own, for example with seqkit rename, or let this program do "
    "it: --data.repeated_ids mates names both reads of a pair id/1 and id/2, "
    "--data.repeated_ids number names the second and later id_1, id_2, ..."
)
_MATES_ADVICE = "A pair has one mate 1 and one mate 2: give the files of R1 and of R2, each once"
_NUMBER_ADVICE = (
    "--data.repeated_ids mates is for the two reads of a pair; --data.repeated_ids number takes "
    "any number of records"
)


class Namesakes(NamedTuple):
    """Some records whose ids occur more than once, with all others of the same ids."""

    rows: NDArray[np.int64]
    """(K,) row of each; those of one id ascend."""
    names: list[str]
    """(K,) id of each."""
    first: NDArray[np.int64]
    """(K,) row of the first record of the same id."""
    rank: NDArray[np.int64]
    """(K,) how many records of the same id come before."""
    size: NDArray[np.int64]
    """(K,) records of the same id."""


def mate_number(header: str) -> int:
    """Read from a header which mate of a pair a record is: 1, 2, or 0 where it does not say.

    Illumina's second word begins with the number and a colon, as in `read7 1:N:0:ACGT`.
    """
    # As bytes: a blank of Latin-1 may be half of a letter in UTF-8.
    words = header.encode("latin-1").split(None, 2)
    return {b"1:": 1, b"2:": 2}.get(words[1][:2], 0) if len(words) > 1 else 0


def number_repeated(
    store: RecordStore,
    hashes: NDArray[np.int64],
    rule: RepeatedIds,
    mates: NDArray[np.int8],
    faults: Faults,
) -> NDArray[np.int64]:
    """Find ids that occur more than once, and the number that each of their records gets.

    Args:
        store: The records.
        hashes: (R,) a number for each id; equal ids have equal ones.
        rule: What becomes of them.
        mates: (R,) which mate of a pair each record says to be, 0 if it does not; of no use but for
            the rule `mates`.
        faults: Takes what the rule does not allow.

    Returns:
        (R,) number to be put behind each id; 0 for none.
    """
    ids = _Ids(store, hashes)
    numbers = np.zeros(len(hashes), np.int64)
    for block in ids.repeated():
        if rule == "mates":
            numbers[block.rows] = _pair(block, mates[block.rows], ids, faults)
        elif rule == "number":
            numbers[block.rows] = _free_numbers(block, ids)
        else:
            _refuse(block, faults)
    return numbers


def numbered_ids(
    store: RecordStore, numbers: NDArray[np.int64], rule: RepeatedIds
) -> Iterator[list[bytes]]:
    """Give the ids of all records with their numbers behind them, a block at a time.

    Args:
        store: The records.
        numbers: (R,) what `number_repeated` has given.
        rule: The rule by which it has.
    """
    joint = _JOINTS[rule]
    for start in range(0, len(store), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(store)))
        pairs = zip(store.ids(rows), numbers[rows].tolist(), strict=True)
        yield [(f"{name}{joint}{n}" if n else name).encode() for name, n in pairs]


class _Ids:
    """The ids of all records, found by their hashes."""

    def __init__(self, store: RecordStore, hashes: NDArray[np.int64]) -> None:
        self._store = store
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]

    def repeated(self) -> Iterator[Namesakes]:
        """Give the records whose ids occur more than once; all of one id are in one block."""
        equal = self._hashes[1:] == self._hashes[:-1]
        alike = np.zeros(len(self._hashes), np.bool_)
        alike[1:] |= equal
        alike[:-1] |= equal
        rows, hashes = self._order[alike], self._hashes[alike]
        edges = np.append(np.flatnonzero(np.diff(hashes, prepend=hashes[:1] - 1)), len(rows))
        start = 0
        while start < len(rows):
            stop = int(edges[np.searchsorted(edges[:-1], start + _BLOCK)])
            yield self._namesakes(rows[start:stop])
            start = stop

    def _namesakes(self, rows: NDArray[np.int64]) -> Namesakes:
        """Sort out what only has the hash of another."""
        names, count = self._store.ids(rows), len(rows)
        firsts: dict[str, int] = {}
        first = np.fromiter((firsts.setdefault(n, i) for i, n in enumerate(names)), np.int64, count)
        of_one_id = np.argsort(first, kind="stable")
        rank = np.empty(count, np.int64)
        rank[of_one_id] = np.arange(count) - np.searchsorted(first[of_one_id], first[of_one_id])
        size = np.bincount(first, minlength=count)[first]
        kept = (size > 1) & (first != firsts.get("", -1))  # an id that is a fault is stored empty
        named = [name for name, keep in zip(names, kept.tolist(), strict=True) if keep]
        return Namesakes(rows[kept], named, rows[first[kept]], rank[kept], size[kept])

    def rows_of(self, names: list[str]) -> NDArray[np.int64]:
        """(K,) a row that has each of some ids; -1 where there is none."""
        found = np.full(len(names), -1)
        wanted = np.fromiter((hash(name.encode()) for name in names), np.int64, len(names))
        starts = np.searchsorted(self._hashes, wanted)
        alike = self._hashes[np.minimum(starts, len(self._hashes) - 1)] == wanted
        for i in np.flatnonzero(alike).tolist():
            stop = int(np.searchsorted(self._hashes, wanted[i], side="right"))
            rows = self._order[starts[i] : stop]
            same = [r for r, n in zip(rows, self._store.ids(rows), strict=True) if n == names[i]]
            found[i] = same[0] if same else -1
        return found


def _refuse(block: Namesakes, faults: Faults) -> None:
    """Every record but the first of an id is a fault."""
    for i in np.flatnonzero(block.rank).tolist():
        what = f"the id is that of {faults.place(int(block.first[i]))} already"
        faults.add(int(block.rows[i]), block.names[i].encode(), what, _ADVICE)


def _pair(block: Namesakes, said: NDArray[np.int8], ids: _Ids, faults: Faults) -> NDArray[np.int64]:
    """(K,) which mate each record is: as its header says, else the first of an id is mate 1.

    Records of an id that are no pair, or say the same, or take another's id, are faults.
    """
    mate = block.rank + 1
    swapped = np.isin(block.first, block.first[(said != 0) & (said != mate)]) & (block.size == 2)
    mate = np.where(swapped, 3 - mate, mate)
    names = [f"{name}/{number}" for name, number in zip(block.names, mate, strict=True)]
    taken = ids.rows_of(names)
    faulty = (block.size > 2) | (taken >= 0) | ((said != 0) & (said != mate))
    for i in np.flatnonzero(faulty).tolist():
        row, name, rank = int(block.rows[i]), block.names[i].encode(), int(block.rank[i])
        if block.size[i] > 2:
            if rank == 2:  # once for each id
                what = f"the id occurs {block.size[i]} times, which is no pair"
                faults.add(row, name, what, _NUMBER_ADVICE)
        elif taken[i] >= 0:
            other = faults.place(int(taken[i]))
            what = f"as mate {mate[i]} it is named {names[i]}, which is the id of {other} already"
            faults.add(row, name, what, _ADVICE)
        else:
            what = f"its header says that it is mate {said[i]}, as the other one's of its id does"
            faults.add(row, name, what, _MATES_ADVICE)
    return mate


def _free_numbers(block: Namesakes, ids: _Ids) -> NDArray[np.int64]:
    """(K,) number of each record: 0 for the first of an id, then 1, 2, ...; none that is an id."""
    numbers = block.rank.copy()
    later = np.flatnonzero(block.rank)
    names = [f"{block.names[i]}_{numbers[i]}" for i in later.tolist()]
    taken = later[ids.rows_of(names) >= 0]
    by_id = later[np.argsort(block.first[later], kind="stable")]
    firsts = block.first[by_id]
    for first in np.unique(block.first[taken]).tolist():
        of_one_id = by_id[np.searchsorted(firsts, first) : np.searchsorted(firsts, first, "right")]
        name, free, tried = block.names[of_one_id[0]], list[int](), 0
        while len(free) < len(of_one_id):
            trial = range(tried + 1, tried + 1 + len(of_one_id))
            rows = ids.rows_of([f"{name}_{number}" for number in trial]).tolist()
            free += [number for number, row in zip(trial, rows, strict=True) if row < 0]
            tried = trial[-1]
        numbers[of_one_id] = free[: len(of_one_id)]
    return numbers
