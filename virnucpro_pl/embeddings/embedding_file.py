"""Embedding files as input: checked, their ids and vectors read on demand."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from virnucpro_pl.embedding_format import FORMAT, FORMAT_VERSION
from virnucpro_pl.errors import InputError

_ID_BLOCK = 65_536
_ROW_BLOCK = 1024
_SPREAD = 4
"""Rows of a file that are read for each row that is wanted, rather than picking rows."""
_CONTROL = re.compile(rb"[\0-\x1f\x7f]")


def load_embeddings(path: str | Path) -> EmbeddingFile:
    """Open an embedding file; ids and vectors are read when they are asked for.

        with load_embeddings("proteins.h5") as embeddings:
            embeddings["sp|P0DTC2"]  # (D,) by id
            embeddings[0:10]  # (10, D) by row

    Args:
        path: HDF5 file that `virnucpro-pl predict` has completed.

    Raises:
        InputError: If it is missing, damaged, unfinished, or no embedding file.
    """
    file = EmbeddingFile(Path(path))
    len(file)  # what is wrong with it is said here, not at the first vector
    return file


class EmbeddingFile:
    """An embedding file, opened anew in each process that reads it.

    A context manager. Iterating gives the ids in order, as `in` asks for ids.
    """

    def __init__(self, path: Path, foreign: bool = False) -> None:
        """Keep the path.

        Args:
            path: The file.
            foreign: Whether a file that names no format will do, as virnucpro-broad writes it: it
                cannot tell whether it is complete.
        """
        self.path = path
        self.foreign = foreign
        self._open_in: tuple[int, h5py.File] | None = None
        self._hashes: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None

    def __reduce__(self) -> tuple[type[EmbeddingFile], tuple[Path, bool]]:
        """Send the path to a worker, not an open file."""
        return EmbeddingFile, (self.path, self.foreign)

    def __enter__(self) -> EmbeddingFile:
        """Give the file itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

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
            inner = "; it is a folder: name one of the files in it" if self.path.is_dir() else ""
            raise InputError(f"{self.path}: no such embedding file{inner}")
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
        named = not self.foreign or kind[0] is not None
        if named and kind != (FORMAT, FORMAT_VERSION):
            raise InputError(
                f"{self.path} is no embedding file of this version: format is {kind[0]!r}, "
                f"format_version {kind[1]}"
            )
        if named and not file.attrs.get("complete"):
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

    @property
    def attributes(self) -> dict[str, Any]:
        """How the file was made: model, precision, versions, and so on."""
        return dict(self.file.attrs)

    @property
    def ids(self) -> list[str]:
        """All N ids in order, read anew at each access."""
        return [name.decode() for block in self.id_blocks() for name in block]

    @property
    def lengths(self) -> NDArray[np.int32] | None:
        """(N,) letters of each record that were embedded, where the file tells them.

        Raises:
            InputError: If they are not one for each id.
        """
        lengths = self._numbers("lengths", np.int32)
        if lengths is not None and len(lengths) != len(self):
            raise InputError(f"{self.path}: /lengths has not one number for each id")
        return lengths

    @property
    def failed(self) -> NDArray[np.int64]:
        """Rows that have no vector: they are NaN."""
        failed = self._numbers("failed", np.int64)
        return np.empty(0, np.int64) if failed is None else failed

    def _numbers(self, name: str, dtype: type[np.generic]) -> NDArray[Any] | None:
        dataset = self.file.get(name)
        if dataset is None:
            return None
        try:
            values = np.asarray(dataset)
        except (OSError, RuntimeError) as error:
            raise InputError(f"{self.path}: /{name} cannot be read: {error}") from error
        if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
            raise InputError(f"{self.path}: /{name} is not a list of whole numbers")
        return values.astype(dtype)

    def __iter__(self) -> Iterator[str]:
        """Yield the ids in order."""
        for block in self.id_blocks():
            yield from (name.decode() for name in block)

    def __contains__(self, name: object) -> bool:
        """Tell whether there is a row of this id."""
        return isinstance(name, str) and len(self._find(name)) > 0

    def __getitem__(self, key: str | int | slice | Sequence[str | int]) -> NDArray[np.float32]:
        """Read some vectors.

        Args:
            key: One id or row for its vector (D,); a slice of rows, or several ids or rows in any
                order, for (n, D).

        Raises:
            KeyError: If there is no such id, or it stands there twice.
            IndexError: If there is no such row.
        """
        if isinstance(key, slice):
            return self.rows(np.arange(len(self))[key])
        if isinstance(key, str | int | np.integer):
            return np.asarray(self.rows(np.array([self._row(key)]))[0])
        return self.rows(np.array([self._row(row) for row in key], np.int64))

    def _row(self, key: str | int) -> int:
        if isinstance(key, str):
            rows = self._find(key)
            if len(rows) != 1:
                what = f"{len(rows)} rows of" if rows else "no"
                raise KeyError(f"{self.path} has {what} id {key!r}")
            return rows[0]
        if not -len(self) <= key < len(self):
            raise IndexError(f"{self.path} has {len(self)} rows, not {key}")
        return int(key) % len(self)

    def _find(self, name: str) -> list[int]:
        """Rows of an id; by hashes, since six million ids in a dictionary take a gigabyte."""
        if self._hashes is None:
            hashed = (hash(name) for block in self.id_blocks() for name in block)
            unsorted = np.fromiter(hashed, np.int64, len(self))
            order = np.argsort(unsorted, kind="stable")
            self._hashes = unsorted[order], order
        key, (hashes, order) = name.encode(), self._hashes
        first, last = (np.searchsorted(hashes, hash(key), side) for side in ("left", "right"))
        return [int(row) for row in order[first:last] if self.file["sequence_ids"][row] == key]

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
        if not len(rows):
            return np.empty((0, self.width), np.float32)
        try:
            first, last = rows.min(), rows.max()
            if last - first < _SPREAD * len(rows):  # picking rows is far slower than reading on
                block = np.asarray(embeddings[first : last + 1], np.float32)
                in_order = len(block) == len(rows) and bool(np.all(np.diff(rows) == 1))
                return block if in_order else block[rows - first]
            # HDF5 reads in ascending order only.
            ordered, back = np.unique(rows, return_inverse=True)
            return np.asarray(embeddings[ordered], np.float32)[back]
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"{self.path} is damaged in rows {rows.min()} to {rows.max()}: {error}"
            ) from error

    def row_blocks(self) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
        """Yield all ids and vectors in order, a block of (n,) and (n, D) at a time."""
        start = 0
        for ids in self.id_blocks():
            for within in range(0, len(ids), _ROW_BLOCK):
                names = [name.decode() for name in ids[within : within + _ROW_BLOCK]]
                yield names, self.rows(np.arange(start, start + len(names)))
                start += len(names)

    @property
    def chunk_length(self) -> int | None:
        """Bases of the chunks whose ORFs were embedded; None where the file does not know.

        Raises:
            InputError: If it is no number.
        """
        value = self.file.attrs.get("chunk_length")
        if value is not None and not isinstance(value, int | np.integer):
            raise InputError(f"{self.path}: its chunk_length is no whole number, but {value!r}")
        return None if value is None else int(value)

    def sha256(self) -> str:
        """Hash of the file's bytes."""
        with self.path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()


def known_chunk_length(files: Iterable[EmbeddingFile]) -> int | None:
    """Bases of the chunks that files are of; None where no file knows.

    Raises:
        InputError: If two files know different ones.
    """
    first: EmbeddingFile | None = None
    for file in files:
        if file.chunk_length is None:
            continue
        if first is not None and file.chunk_length != first.chunk_length:
            raise InputError(
                f"{first.path} is of chunks of {first.chunk_length} bases, {file.path} of chunks "
                f"of {file.chunk_length}: embed both with one --data.length"
            )
        first = file if first is None else first
    return None if first is None else first.chunk_length
