"""Embedding files as input: checked, their ids and vectors read on demand."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
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
_DAMAGED = (OSError, RuntimeError, LookupError, ValueError, TypeError, MemoryError)
"""What h5py raises where a file is damaged, or has what it does not know."""


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
        self._attributes: dict[str, Any] = {}
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
            with self._reading("it"):
                file = h5py.File(self.path, "r")
                self._attributes = dict(self._attributes_of(file))
                self._check(file)
        except InputError:
            if file is not None:
                file.close()
            raise
        return file

    def _attributes_of(self, file: h5py.File) -> Iterator[tuple[str, Any]]:
        """Give all attributes; of a file of another program those that h5py knows."""
        for name in file.attrs:
            try:
                yield name, file.attrs[name]
            except TypeError:
                if not self.foreign:
                    raise

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        """Say what cannot be read.

        Raises:
            InputError: If something cannot.
        """
        try:
            yield
        except _DAMAGED as error:
            fault = f"{type(error).__name__}: {error}"
            raise InputError(f"{self.path}: {what} cannot be read as HDF5: {fault}") from error

    def close(self) -> None:
        """Close it in this process, if it is open here."""
        if self._open_in is not None and self._open_in[0] == os.getpid():
            self._open_in[1].close()
        self._open_in = None

    def _check(self, file: h5py.File) -> None:
        attributes = self._attributes
        kind = attributes.get("format"), attributes.get("format_version")
        named = not self.foreign or kind[0] is not None
        if named and kind != (FORMAT, FORMAT_VERSION):
            raise InputError(
                f"{self.path} is no embedding file of this version: format is {kind[0]!r}, "
                f"format_version {kind[1]}"
            )
        if named and not attributes.get("complete"):
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
        self._check_written(vectors)
        self._check_written(ids)

    def _check_written(self, dataset: h5py.Dataset) -> None:
        """Refuse numbers that nobody wrote: HDF5 makes up zeros, as many as the head promises.

        Where others lie in files of their own it is not told.

        Raises:
            InputError: If some are missing.
        """
        if dataset.is_virtual:
            return
        if dataset.chunks is None:
            is_whole = dataset.id.get_storage_size() >= dataset.nbytes
        else:
            sides = zip(dataset.shape, dataset.chunks, strict=True)
            needed = math.prod(-(-side // chunk) for side, chunk in sides)
            is_whole = dataset.id.get_num_chunks() == needed
        if not is_whole:
            shape = " x ".join(map(str, dataset.shape))
            raise InputError(
                f"{self.path}: not all of the {shape} entries of {dataset.name} are in the file"
            )

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
        _ = self.file
        return dict(self._attributes)

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
        lengths = self._numbers("lengths", np.int32, np.iinfo(np.int32).max)
        if lengths is not None and len(lengths) != len(self):
            raise InputError(f"{self.path}: /lengths has not one number for each id")
        return lengths

    @property
    def max_length(self) -> int | None:
        """Letters that were embedded of a record at most; None for all, or if it does not tell."""
        return self._whole("max_length", self._notes("lengths").get("max_length"))

    @property
    def truncated(self) -> int:
        """Records that had more letters; 0 if the file does not tell."""
        notes = self._notes("lengths")
        return self._whole("truncated_records", notes.get("truncated_records")) or 0

    @property
    def failed(self) -> NDArray[np.int64]:
        """Rows that have no vector: they are NaN.

        Raises:
            InputError: If there are no such rows.
        """
        failed = self._numbers("failed", np.int64, len(self) - 1)
        return np.empty(0, np.int64) if failed is None else np.unique(failed)

    def _numbers(self, name: str, dtype: type[np.generic], most: int) -> NDArray[Any] | None:
        """Whole numbers from 0 to so many; None where the file has none of that name."""
        with self._reading(f"/{name}"):
            if self.file.get(name, getlink=True) is None:
                return None
            dataset = self.file[name]
            is_list = isinstance(dataset, h5py.Dataset) and dataset.ndim == 1
            if not is_list or not np.issubdtype(dataset.dtype, np.integer):
                raise InputError(f"{self.path}: /{name} is not a list of whole numbers")
            self._check_written(dataset)
            values = np.asarray(dataset)
        if len(values) and not (values.min() >= 0 and values.max() <= most):
            raise InputError(f"{self.path}: /{name} holds numbers beyond 0 to {most}")
        return values.astype(dtype)

    def _notes(self, name: str) -> dict[str, Any]:
        """Attributes of a dataset; none where there is no dataset."""
        with self._reading(f"/{name}"):
            return dict(self.file[name].attrs) if name in self.file else {}

    def _whole(self, name: str, value: Any) -> int | None:
        """Take an attribute as a whole number; None where the file has none."""
        if value is None:
            return None
        if not isinstance(value, int | np.integer) or value < 0:
            raise InputError(f"{self.path}: its {name} is no whole number, but {value!r}")
        return int(value)

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
        rows = np.sort(order[first:last])
        return [int(row) for row, i in zip(rows, self.ids_of(rows), strict=True) if i == name]

    def ids_of(self, rows: NDArray[np.int64]) -> list[str]:
        """Ids of some rows, which ascend."""
        with self._reading("an id"):
            return [name.decode() for name in self.file["sequence_ids"][rows].tolist()]

    def id_blocks(self) -> Iterator[list[bytes]]:
        """Yield all ids in order, a block at a time.

        Raises:
            InputError: If one cannot stand in a table.
        """
        for start in range(0, len(self), _ID_BLOCK):
            with self._reading("an id"):
                ids: list[bytes] = self.file["sequence_ids"][start : start + _ID_BLOCK].tolist()
                text = b"".join(ids)
                text.decode()
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
        except _DAMAGED as error:
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
        return self._whole("chunk_length", self.attributes.get("chunk_length"))

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
