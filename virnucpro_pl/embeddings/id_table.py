"""Ids on disk: tables mapped by all ranks and workers, and which ids two of them share."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from virnucpro_pl.errors import InputError, listed
from virnucpro_pl.input.records import map_array, write_array

_ID_BLOCK = 65_536


class Ids(Protocol):
    """A file that has ids."""

    path: Path

    def id_blocks(self) -> Iterator[list[bytes]]:
        """Yield all ids in order, a block at a time."""
        ...


class IdTable:
    """Ids of an embedding file, mapped from disk."""

    def __init__(self, folder: Path, name: str) -> None:
        """Map a table.

        Args:
            folder: Where `write_ids` put it.
            name: The file's name there.
        """
        self._letters = map_array(folder / f"{name}.ids", np.uint8)
        self._ends = map_array(folder / f"{name}.ends", np.int64)

    def __len__(self) -> int:
        """Count the ids."""
        return len(self._ends)

    def __call__(self, rows: NDArray[np.int64]) -> list[str]:
        """Ids of some rows."""
        starts = np.where(rows > 0, self._ends[rows - 1], 0)
        letters = self._letters
        return [
            letters[a:b].tobytes().decode() for a, b in zip(starts, self._ends[rows], strict=True)
        ]


def write_ids(file: Ids, folder: Path, name: str) -> tuple[IdTable, NDArray[np.int64]]:
    """Copy a file's ids to where all ranks and workers map them.

    Args:
        file: The file.
        folder: An existing folder.
        name: Name of the table there.

    Returns:
        The table, and (M,) one number per id; equal ids have equal ones.
    """
    lengths, hashes = array("q"), array("q")
    with (folder / f"{name}.ids").open("wb") as letters:
        for ids in file.id_blocks():
            letters.write(b"".join(ids))
            lengths.extend(map(len, ids))
            hashes.extend(map(hash, ids))
    write_array(folder / f"{name}.ends", np.cumsum(np.asarray(lengths, np.int64)))
    return IdTable(folder, name), np.asarray(hashes, np.int64)


class Match(NamedTuple):
    """How the rows of two files belong together."""

    first: NDArray[np.int64]
    """(S,) rows of the first file, ascending, whose ids both have."""
    second: NDArray[np.int64]
    """(S,) rows of the second file with the same ids."""
    only_first: NDArray[np.int64]
    """Rows of the first file whose ids the second lacks, ascending."""
    only_second: NDArray[np.int64]
    """Rows of the second file whose ids the first lacks, ascending."""


def match_ids(files: tuple[Ids, Ids], folder: Path) -> tuple[Match, IdTable, IdTable]:
    """Find the rows of two files that have the same ids.

    Args:
        files: Both files.
        folder: An existing folder for the tables `first` and `second`.

    Returns:
        The rows, and both tables of ids.

    Raises:
        InputError: If a file names an id twice.
    """
    (first, first_hashes), (second, second_hashes) = (
        write_ids(file, folder, name) for file, name in zip(files, ("first", "second"), strict=True)
    )
    first_order, first_sorted = _ordered(files[0], first, first_hashes)
    second_order, second_sorted = _ordered(files[1], second, second_hashes)
    places = np.searchsorted(first_sorted, second_sorted)
    shared = places < len(first_sorted)
    shared[shared] = first_sorted[places[shared]] == second_sorted[shared]
    rows, partners = first_order[places[shared]], second_order[shared]
    order = np.argsort(rows)
    lonely = np.ones(len(first), np.bool_)
    lonely[rows] = False
    match = Match(
        rows[order],
        partners[order],
        np.flatnonzero(lonely),
        np.sort(second_order[~shared]),
    )
    for start in range(0, len(rows), _ID_BLOCK):
        block = slice(start, start + _ID_BLOCK)
        if first(match.first[block]) != second(match.second[block]):  # different ids with one hash
            raise InputError(f"{files[0].path} and {files[1].path} do not hold the same ids")
    return match, first, second


def _ordered(
    file: Ids, table: IdTable, hashes: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows by their hashes, and the hashes, ascending.

    Raises:
        InputError: If the file names an id twice.
    """
    order = np.argsort(hashes, kind="stable")
    ascending = hashes[order]
    twice = order[1:][ascending[1:] == ascending[:-1]]
    if len(twice):
        names = listed(table(twice[:1000]))
        raise InputError(f"{file.path} has {len(twice)} id(s) more than once: {names}")
    return order, ascending
