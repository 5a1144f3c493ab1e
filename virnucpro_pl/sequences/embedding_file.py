"""Embedding files as input: checked, their ids mapped from disk, their vectors read on demand."""

from __future__ import annotations

import hashlib
import os
import re
from array import array
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from virnucpro_pl.errors import InputError
from virnucpro_pl.sequences.records import map_array

__all__ = ["EmbeddingFile", "IdTable", "write_ids"]

_FORMAT = "virnucpro-pl embeddings"
_FORMAT_VERSION = 1
_ID_BLOCK = 65_536
_CONTROL = re.compile(rb"[\0-\x1f\x7f]")


class EmbeddingFile:
    """An embedding file, opened anew in each process that reads it."""

    def __init__(self, path: Path) -> None:
        """Keep the path.

        Args:
            path: The file.
        """
        self.path = path
        self._open_in: tuple[int, h5py.File] | None = None

    def __reduce__(self) -> tuple[type[EmbeddingFile], tuple[Path]]:
        """Send the path to a worker, not an open file."""
        return EmbeddingFile, (self.path,)

    @property
    def file(self) -> h5py.File:
        """The open file; a forked worker must not use its parent's.

        Raises:
            InputError: If it is missing, damaged, unfinished, or no embedding file.
        """
        if self._open_in is None or self._open_in[0] != os.getpid():
            self._open_in = (os.getpid(), self._open())
        return self._open_in[1]

    def _open(self) -> h5py.File:
        if not self.path.is_file():
            raise InputError(f"{self.path}: no such embedding file")
        file = None
        try:
            file = h5py.File(self.path, "r")
            self._check(file)
        except (OSError, RuntimeError, InputError) as error:  # h5py raises one or other on damage
            if file is not None:
                file.close()
            if isinstance(error, InputError):
                raise
            raise InputError(f"{self.path} cannot be read as HDF5: {error}") from error
        return file

    def close(self) -> None:
        """Close it in this process, if it is open here."""
        if self._open_in is not None and self._open_in[0] == os.getpid():
            self._open_in[1].close()
        self._open_in = None

    def _check(self, file: h5py.File) -> None:
        kind = file.attrs.get("format"), file.attrs.get("format_version")
        if kind != (_FORMAT, _FORMAT_VERSION):
            raise InputError(
                f"{self.path} is no embedding file of this version: format is {kind[0]!r}, "
                f"format_version {kind[1]}"
            )
        if not file.attrs.get("complete"):
            raise InputError(f"{self.path} was never completed")
        for name, dimensions in (("embeddings", 2), ("sequence_ids", 1)):
            dataset = file.get(name)
            if not isinstance(dataset, h5py.Dataset) or dataset.ndim != dimensions:
                raise InputError(f"{self.path} has no /{name} of {dimensions} dimension(s)")
        vectors, ids = file["embeddings"], file["sequence_ids"]
        if len(vectors) != len(ids):
            raise InputError(f"{self.path} has {len(vectors)} vectors, but {len(ids)} ids")
        if not np.issubdtype(vectors.dtype, np.floating):
            raise InputError(f"{self.path}: /embeddings is {vectors.dtype}, not float32")
        if h5py.check_string_dtype(ids.dtype) is None:
            raise InputError(f"{self.path}: /sequence_ids is {ids.dtype}, not text")

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.file["sequence_ids"])

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return int(self.file["embeddings"].shape[1])

    def id_blocks(self) -> Iterator[list[bytes]]:
        """Yield all ids in order, a block at a time.

        Raises:
            InputError: If one cannot stand in a table.
        """
        for start in range(0, len(self), _ID_BLOCK):
            try:
                ids: list[bytes] = self.file["sequence_ids"][start : start + _ID_BLOCK].tolist()
                text = b"".join(ids)
                text.decode()
            except (OSError, RuntimeError, UnicodeDecodeError) as error:
                raise InputError(f"{self.path}: ids cannot be read: {error}") from error
            if b"" in ids or _CONTROL.search(text):
                row = next(i for i, name in enumerate(ids) if not name or _CONTROL.search(name))
                raise InputError(
                    f"{self.path}: the id of row {start + row}, {ids[row].decode()!r}, is empty or "
                    "holds a control character"
                )
            yield ids

    def rows(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Vectors of some rows, in the order asked for.

        Raises:
            InputError: If they cannot be read.
        """
        embeddings = self.file["embeddings"]
        try:
            if np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):
                return np.asarray(embeddings[rows[0] : rows[-1] + 1], np.float32)
            # HDF5 reads in ascending order only.
            ordered, back = np.unique(rows, return_inverse=True)
            return np.asarray(embeddings[ordered], np.float32)[back]
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"{self.path} is damaged in rows {rows.min()} to {rows.max()}: {error}"
            ) from error

    def sha256(self) -> str:
        """Hash of the file's bytes."""
        with self.path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()


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


def write_ids(file: EmbeddingFile, folder: Path, name: str) -> tuple[IdTable, NDArray[np.int64]]:
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
    np.cumsum(np.asarray(lengths, np.int64)).tofile(folder / f"{name}.ends")
    return IdTable(folder, name), np.asarray(hashes, np.int64)
