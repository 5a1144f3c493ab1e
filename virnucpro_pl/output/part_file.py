"""Part files: what one rank has finished, on disk whole and with a checksum.

A part holds `/rows` (n,), `/ids` (their ids, one NUL between two), the columns of the prediction,
such as `/columns/embeddings` (n, D) float32, and a checksum over them.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from virnucpro_pl.errors import OutputError, listed
from virnucpro_pl.output.atomic_files import published
from virnucpro_pl.output.quiet_file import QuietFile

log = logging.getLogger(__name__)


class IncompleteError(OutputError):
    """The parts do not hold every row exactly once."""


class Part(NamedTuple):
    """Rows that one rank has finished."""

    rows: NDArray[np.int64]
    """(n,) row of each sequence in the input."""
    ids: Sequence[str]
    """(n,) ids."""
    columns: Mapping[str, NDArray[Any]]
    """(n, ...) what was predicted, by name, and its `outcome` (n,) uint8 (see `stability`)."""
    run: str = ""
    """Name of the run that has computed it, also where it was interrupted; see `Manifest`."""


def write_part(path: Path, part: Part) -> None:
    """Commit a part: afterwards it is on disk whole, or there is none.

    Other threads run while the disk is busy, and HDF5 hears of no error (see `quiet_file`).

    Raises:
        OSError: If the disk is full, for example.
    """
    with published(path) as temporary:
        with QuietFile(temporary) as disk, h5py.File(disk, "w") as file:
            file["rows"] = part.rows
            file["ids"] = np.frombuffer(_joined(part.ids), np.uint8)
            for name, column in part.columns.items():
                file[f"columns/{name}"] = column
            file.attrs["run"] = np.bytes_(part.run)  # text of no set length takes 4 kB
            file.attrs["checksum"] = _checksum(part)
        if disk.error is not None:
            raise disk.error


def read_part(path: Path) -> Part | None:
    """Read a part back, or None (with a log line) if it is damaged."""
    try:
        with h5py.File(path, "r") as file:
            part = Part(
                file["rows"][()],
                file["ids"][()].tobytes().decode().split("\0"),
                {name: column[()] for name, column in file["columns"].items()},
                bytes(file.attrs.get("run", b"")).decode(),
            )
            if _checksum(part) == file.attrs["checksum"]:
                return part
            reason = "its checksum does not match"
    except (OSError, KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        reason = str(error)
    log.warning("%s is damaged (%s): the same command computes its rows again", path, reason)
    return None


def count_rows(path: Path) -> int:
    """Count the rows of a part without reading them; none in one that is damaged."""
    try:
        with h5py.File(path, "r") as file:
            return len(file["rows"])
    except (OSError, KeyError, RuntimeError):
        return 0


def _joined(ids: Sequence[str]) -> bytes:
    return "\0".join(ids).encode()


def _checksum(part: Part) -> int:
    total = zlib.crc32(_bytes(part.rows), zlib.crc32(part.run.encode()))
    total = zlib.crc32(_joined(part.ids), total)
    for name in sorted(part.columns):
        total = zlib.crc32(_bytes(part.columns[name]), zlib.crc32(name.encode(), total))
    return total


def _bytes(values: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(values).data


class Tally:
    """Which rows of the input have been there: each exactly once and under its own id."""

    def __init__(self, count: int, ids: Callable[[NDArray[np.int64]], list[str]]) -> None:
        """Begin without any.

        Args:
            count: N, rows of the input.
            ids: Gives the ids of some rows of the input.
        """
        self.seen = np.zeros(count, np.bool_)
        self.ids = ids

    def read(self, path: Path) -> Part:
        """Read a part and tick its rows off.

        Raises:
            IncompleteError: If it is damaged, or a row is there twice, under another id, or not of
                this input.
        """
        part = read_part(path)
        if part is None:
            raise IncompleteError(f"{path} was damaged after it had been committed")
        rows, count = part.rows, len(self.seen)
        if len(rows) and not 0 <= rows.min() <= rows.max() < count:
            raise IncompleteError(f"{path} holds rows that the input of {count} rows does not have")
        doubled = rows[self.seen[rows]]
        if len(doubled) or len(np.unique(rows)) < len(rows):
            raise IncompleteError(
                f"{path} holds rows that another part holds already: {doubled[:20]}"
            )
        if self.ids(rows) != list(part.ids):
            raise IncompleteError(f"{path} holds rows under ids that are not those of the input")
        self.seen[rows] = True
        return part

    def finish(self) -> None:
        """Make sure that every row has been there.

        Raises:
            IncompleteError: With the ids of those that have not.
        """
        missing = np.flatnonzero(~self.seen)
        if len(missing):
            count, names = len(self.seen), listed(self.ids(missing[:1000]))
            raise IncompleteError(f"{len(missing)} of {count} records have no result: {names}")


def runs(rows: NDArray[np.int64]) -> list[slice]:
    """Slices of `rows` within which they are consecutive."""
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    edges = [0, *breaks.tolist(), len(rows)]
    return [slice(a, b) for a, b in pairwise(edges)]
