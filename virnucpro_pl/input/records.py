"""The records of an input, in a store on disk that every rank and worker maps.

6 million records cost a rank nothing but address space: residues, offsets and ids lie in files.
`input.reader` fills it.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_END_OF_ID = b"\0"
"""In no id: one that is not printable is refused."""
_KEPT = "kept.bin"
"""File of the records that are rows, where some are left out."""


SHORTER = "shorter_than_min_length"
"""What the number of records is called that are shorter than `min_length`."""
_BLOCK = 1 << 16
"""Records whose ids and sequences are in memory at a time."""


class FileRecords(NamedTuple):
    """A file of an input."""

    file: str
    """The file as it was given."""
    records: int
    """How many of the store's records it has; they follow each other."""


class RecordStore:
    """Records of one input, mapped from disk; pickled by its path alone.

    Attributes:
        residues: (total letters,) uint8, all sequences one behind the other.
        offsets: (R+1,) int64 start of each sequence in `residues`, those left out included.
        sha256: Hash of ids and sequences, whatever the file's compression and line width.
        counts: What a reader of the results should know of the input, by name.
        files: The files that the records are of, in order.
        unit: What a row is, for messages.
    """

    unit = "records"

    def __init__(self, folder: Path) -> None:
        """Map a store.

        Args:
            folder: Where a `StoreWriter` put it.
        """
        self.folder = folder
        self.residues = map_array(folder / "residues.bin", np.uint8)
        self.offsets = map_array(folder / "offsets.bin", np.int64)
        self._id_bytes = map_array(folder / "ids.bin", np.uint8)
        self._id_offsets = map_array(folder / "id_offsets.bin", np.int64)
        content = json.loads((folder / "store.json").read_text())
        self.sha256 = str(content["sha256"])
        self.counts: dict[str, int] = content["counts"]
        self.files = [FileRecords(*file) for file in content["files"]]
        kept = folder / _KEPT
        self._kept = map_array(kept, np.int64) if kept.exists() else None

    def __reduce__(self) -> tuple[type[RecordStore], tuple[Path]]:
        """Send the path to a worker, not the bytes."""
        return RecordStore, (self.folder,)

    def __len__(self) -> int:
        """Count the records."""
        return len(self.offsets) - 1 if self._kept is None else len(self._kept)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(N,) letters of each record."""
        lengths = np.diff(self.offsets)
        return lengths if self._kept is None else lengths[self._kept]

    def lengths_of(self, rows: NDArray[np.int64], most: int | None = None) -> NDArray[np.int64]:
        """(n,) letters of some rows, so many of each at most."""
        rows = self._stored(rows)
        return at_most(self.offsets[rows + 1] - self.offsets[rows], most)

    def ids(self, rows: NDArray[np.int64]) -> list[str]:
        """Ids of some rows; quickest where rows follow each other."""
        rows = self._stored(rows)
        firsts = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
        lasts = np.flatnonzero(np.diff(rows, append=-2) != 1)
        starts = self._id_offsets[rows[firsts]].tolist()
        stops = (self._id_offsets[rows[lasts] + 1] - len(_END_OF_ID)).tolist()
        names: list[str] = []
        for start, stop in zip(starts, stops, strict=True):
            names += self._id_bytes[start:stop].tobytes().decode().split(_END_OF_ID.decode())
        return names

    def sequences(self, rows: NDArray[np.int64], most: int | None = None) -> list[bytes]:
        """Sequences of some rows, of each so many letters at most."""
        rows = self._stored(rows)
        return cut_out(self.residues, self.offsets[rows], self.offsets[rows + 1], most)

    def _stored(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where some rows lie in the store, of which some records may be left out."""
        return rows if self._kept is None else self._kept[rows]


def write_array(file: Path | IO[bytes], values: NDArray[Any]) -> None:
    """Write numbers so that `map_array` finds them, behind what an open file holds.

    numpy's own `tofile` loses the error of a disk that is full at the very end: the file is short
    then, and nobody knows.

    Raises:
        OSError: If the disk is full, for example; of an open file at the latest when it is closed.
    """
    content = np.ascontiguousarray(values).data
    if isinstance(file, Path):
        file.write_bytes(content)
    else:
        file.write(content)


def map_array(path: Path, dtype: type[np.generic]) -> NDArray[Any]:
    """Map a file of numbers; read-only, and empty where the file is."""
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r").view(np.ndarray)  # slices of a memmap are slow


def at_most(lengths: NDArray[np.int64], most: int | None) -> NDArray[np.int64]:
    """Lengths of what is kept of sequences of these; None for all."""
    return lengths if most is None else np.minimum(lengths, most)


def cut_out(
    letters: NDArray[np.uint8],
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    most: int | None = None,
) -> list[bytes]:
    """Some strings of many; quickest where they follow each other.

    Args:
        letters: All strings, one behind the other.
        starts: (n,) where each begins.
        stops: (n,) where each ends.
        most: Letters of each that are taken at most; None for all.
    """
    if most is not None:
        stops = starts + at_most(stops - starts, most)
    elif len(starts) and (starts[1:] == stops[:-1]).all():
        first = int(starts[0])
        joined = letters[first : stops[-1]].tobytes()
        places = zip((starts - first).tolist(), (stops - first).tolist(), strict=True)
        return [joined[a:b] for a, b in places]
    return [letters[a:b].tobytes() for a, b in zip(starts, stops, strict=True)]


class StoreWriter:
    """Appends records to a store; nothing is kept in RAM but three numbers per record.

    Attributes:
        hashes: One number per id; equal ids have equal ones.
    """

    def __init__(self, folder: Path) -> None:
        """Open the store's files.

        Args:
            folder: An existing folder; a store that lies there is replaced.
        """
        self.folder = folder
        self.lengths = array("q")
        self.id_lengths = array("q")
        self.hashes = array("q")
        self._sha256 = hashlib.sha256()
        (folder / _KEPT).unlink(missing_ok=True)
        self._residues = (folder / "residues.bin").open("wb")
        self._ids = (folder / "ids.bin").open("wb")

    def __enter__(self) -> StoreWriter:
        """Give the writer."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the files."""
        self._residues.close()
        self._ids.close()

    def append(self, ids: list[bytes], sequences: list[bytes]) -> None:
        """Add records, in order."""
        self.lengths.extend(map(len, sequences))
        self.id_lengths.extend(len(name) + len(_END_OF_ID) for name in ids)
        self.hashes.extend(map(hash, ids))
        self._residues.write(b"".join(sequences))
        self._ids.writelines(name + _END_OF_ID for name in ids)
        _add_to_hash(self._sha256, ids, sequences)

    def close(self, files: list[FileRecords], counts: dict[str, int]) -> RecordStore:
        """Write offsets, hash, files and counts, and map the result."""
        self._residues.close()
        self._ids.close()
        _write_offsets(self.folder / "offsets.bin", self.lengths)
        _write_offsets(self.folder / "id_offsets.bin", self.id_lengths)
        _describe(self.folder, self._sha256.hexdigest(), files, counts)
        return RecordStore(self.folder)


def change_store(
    store: RecordStore,
    *,
    ids: Iterable[list[bytes]] | None,
    kept: NDArray[np.bool_] | None,
    counts: dict[str, int],
) -> RecordStore:
    """Give records other ids, or leave some out; the hash is then that of what is left.

    Args:
        store: The store as it was written.
        ids: New ids of all records, a block at a time; None for those that they have.
        kept: (R,) flags of the records that are rows; None for all.
        counts: What is added to the store's counts.

    Returns:
        The new store, in the same folder; the old one is of no more use.

    Raises:
        OSError: If it cannot be written.
    """
    folder, files = store.folder, store.files
    if ids is not None:
        lengths = array("q")
        with (folder / "ids.new").open("wb") as file:
            for block in ids:
                lengths.extend(len(name) + len(_END_OF_ID) for name in block)
                file.writelines(name + _END_OF_ID for name in block)
        (folder / "ids.new").replace(folder / "ids.bin")
        _write_offsets(folder / "id_offsets.bin", lengths)
    if kept is not None:
        write_array(folder / _KEPT, np.flatnonzero(kept))
        ends = np.cumsum([0, *(file.records for file in files)])
        left = np.diff(np.append(0, np.cumsum(kept))[ends]).tolist()
        files = [file._replace(records=n) for file, n in zip(files, left, strict=True)]
    changed = ids is not None or kept is not None
    sha256 = _hash(RecordStore(folder)) if changed else store.sha256
    _describe(folder, sha256, files, {**store.counts, **counts})
    return RecordStore(folder)


def _hash(store: RecordStore) -> str:
    sha256 = hashlib.sha256()
    for start in range(0, len(store), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(store)))
        names = [name.encode() for name in store.ids(rows)]
        _add_to_hash(sha256, names, store.sequences(rows))
    return sha256.hexdigest()


def _add_to_hash(sha256: Any, ids: list[bytes], sequences: list[bytes]) -> None:
    for pair in zip(ids, sequences, strict=True):
        sha256.update(b"\0%b\n%b" % pair)


def _write_offsets(path: Path, lengths: array[int]) -> None:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(np.asarray(lengths, np.int64), out=offsets[1:])
    write_array(path, offsets)


def _describe(folder: Path, sha256: str, files: list[FileRecords], counts: dict[str, int]) -> None:
    content = {"sha256": sha256, "files": files, "counts": counts}
    (folder / "store.json").write_text(json.dumps(content))
