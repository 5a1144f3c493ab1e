"""The HDF5 format: part files while a run goes on, one embedding file when it is over.

A part holds `/rows` (n,), `/ids` (their ids, one NUL between two), the columns of the prediction,
such as `/columns/embeddings` (n, D) float32, and a checksum over them. The embedding file holds
`/embeddings` (N, D) float32, `/sequence_ids` (N,) and `/lengths` (N,) int32, row i being record i
of the input; `/failed` and `/recomputed`, the numbers of the rows that have no vector (they are
NaN) and of those computed again in FP32; and `complete=True` among its attributes, written last.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from virnucpro_pl.errors import OutputError, listed
from virnucpro_pl.output.files import published
from virnucpro_pl.output.quiet_file import QuietFile
from virnucpro_pl.stability import FAILED, FINE, RECOMPUTED

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "IncompleteError",
    "Part",
    "each_part",
    "merge",
    "read_part",
    "runs",
    "write_part",
]

log = logging.getLogger(__name__)

FORMAT = "virnucpro-pl embeddings"
FORMAT_VERSION = 1
_CHUNK_BYTES = 1 << 18
_ID_BLOCK = 65_536


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
            )
            if _checksum(part) == file.attrs["checksum"]:
                return part
            reason = "its checksum does not match"
    except (OSError, KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        reason = str(error)
    log.warning("%s is damaged (%s): its rows will be computed again", path, reason)
    return None


def _joined(ids: Sequence[str]) -> bytes:
    return "\0".join(ids).encode()


def _checksum(part: Part) -> int:
    total = zlib.crc32(_joined(part.ids), zlib.crc32(_bytes(part.rows)))
    for name in sorted(part.columns):
        total = zlib.crc32(_bytes(part.columns[name]), zlib.crc32(name.encode(), total))
    return total


def _bytes(values: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(values).data


def each_part(
    paths: Iterable[Path], count: int, ids: Callable[[NDArray[np.int64]], list[str]]
) -> Iterator[Part]:
    """Yield all parts, making sure that together they hold every row exactly once.

    Args:
        paths: Part files.
        count: N, rows of the input.
        ids: Gives the ids of some rows of the input.

    Raises:
        IncompleteError: If a row is missing, there twice, damaged, or under another id. A missing
            row shows after the last part.
    """
    seen = np.zeros(count, np.bool_)
    for path in paths:
        part = read_part(path)
        if part is None:
            raise IncompleteError(f"{path} was damaged after it had been committed")
        _verify(path, part, seen, ids)
        yield part
    missing = np.flatnonzero(~seen)
    if len(missing):
        names = listed(ids(missing[:1000]))
        raise IncompleteError(f"{len(missing)} of {count} records have no result: {names}")


def merge(
    path: Path,
    scratch: Path,
    parts: Iterable[Path],
    *,
    column: str,
    ids: Callable[[NDArray[np.int64]], list[str]],
    lengths: NDArray[np.int64],
    attributes: Mapping[str, Any],
    max_length: int | None = None,
    width: int | None = None,
) -> int:
    """Publish an embedding file, every row exactly once and under its own id.

    Args:
        path: The file to publish; one that is there is replaced.
        scratch: Folder on the same file system for the file while it is being made.
        parts: Part files.
        column: The column of the parts that becomes `/embeddings`.
        ids: Gives the ids of some rows of the input.
        lengths: (N,) letters of each record of the input.
        attributes: Root attributes beside the format's own; those that are None are left out.
        max_length: Letters at which records were cut; None if they were not.
        width: Numbers of a vector, where there may be no part that tells.

    Returns:
        How many rows have no vector: they are NaN, and listed in `/failed`.

    Raises:
        IncompleteError: If a row is missing, there twice, damaged, or under another id.
    """
    count = len(lengths)
    with published(path, scratch) as temporary, h5py.File(temporary, "w") as file:
        embeddings = None if width is None else _create(file, count, width)
        outcome = np.full(count, FINE, np.uint8)
        for part in each_part(parts, count, ids):
            vectors = part.columns[column]
            if embeddings is None:
                embeddings = _create(file, count, vectors.shape[1])
            outcome[part.rows] = part.columns["outcome"]
            for run in runs(part.rows):
                embeddings[part.rows[run.start] : part.rows[run.stop - 1] + 1] = vectors[run]
        _write_table(file, count, ids, lengths, max_length)
        file["failed"] = failed = np.flatnonzero(outcome == FAILED)
        file["recomputed"] = np.flatnonzero(outcome == RECOMPUTED)
        known = {name: value for name, value in attributes.items() if value is not None}
        file.attrs.update({"format": FORMAT, "format_version": FORMAT_VERSION, **known})
        file.flush()
        file.attrs["complete"] = True
    return len(failed)


def _verify(
    name: Path,
    part: Part,
    seen: NDArray[np.bool_],
    ids: Callable[[NDArray[np.int64]], list[str]],
) -> None:
    if len(part.rows) and not 0 <= part.rows.min() <= part.rows.max() < len(seen):
        raise IncompleteError(f"{name} holds rows that the input of {len(seen)} rows does not have")
    doubled = part.rows[seen[part.rows]]
    if len(doubled) or len(np.unique(part.rows)) < len(part.rows):
        raise IncompleteError(f"{name} holds rows that another part holds already: {doubled[:20]}")
    if ids(part.rows) != list(part.ids):
        raise IncompleteError(f"{name} holds rows under ids that are not those of the input")
    seen[part.rows] = True


def _create(file: h5py.File, count: int, width: int) -> h5py.Dataset:
    rows = max(1, min(count, _CHUNK_BYTES // (4 * width)))
    chunks = (rows, width) if count else None
    return file.create_dataset("embeddings", (count, width), np.float32, chunks=chunks)


def runs(rows: NDArray[np.int64]) -> list[slice]:
    """Slices of `rows` within which they are consecutive."""
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    edges = [0, *breaks.tolist(), len(rows)]
    return [slice(a, b) for a, b in pairwise(edges)]


def _write_table(
    file: h5py.File,
    count: int,
    ids: Callable[[NDArray[np.int64]], list[str]],
    lengths: NDArray[np.int64],
    max_length: int | None,
) -> None:
    chunks = (min(count, _ID_BLOCK),) if count else None
    names = file.create_dataset("sequence_ids", (count,), h5py.string_dtype(), chunks=chunks)
    for start in range(0, count, _ID_BLOCK):
        rows = np.arange(start, min(start + _ID_BLOCK, count))
        names[start : start + len(rows)] = ids(rows)
    embedded = lengths if max_length is None else np.minimum(lengths, max_length)
    dataset = file.create_dataset("lengths", data=embedded.astype(np.int32))
    if max_length is not None:
        dataset.attrs["max_length"] = max_length
        dataset.attrs["truncated_records"] = int(np.count_nonzero(lengths > max_length))
