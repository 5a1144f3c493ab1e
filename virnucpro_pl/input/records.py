"""The records of an input, in a store on disk that every rank and worker maps.

6 million records cost a rank nothing but address space: residues, offsets and ids lie in files.
`input.reader` fills it.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

_END_OF_ID = b"\0"
"""In no id: one that is not printable is refused."""


class RecordStore:
    """Records of one input, mapped from disk; pickled by its path alone.

    Attributes:
        residues: (total letters,) uint8, all sequences one behind the other.
        offsets: (N+1,) int64 start of each sequence in `residues`.
        sha256: Hash of ids and sequences, whatever the file's compression and line width.
        counts: What a reader of the results should know of the input, by name.
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

    def __reduce__(self) -> tuple[type[RecordStore], tuple[Path]]:
        """Send the path to a worker, not the bytes."""
        return RecordStore, (self.folder,)

    def __len__(self) -> int:
        """Count the records."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(N,) letters of each record."""
        return np.diff(self.offsets)

    def ids(self, rows: NDArray[np.int64]) -> list[str]:
        """Ids of some rows; quickest where rows follow each other."""
        firsts = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
        lasts = np.flatnonzero(np.diff(rows, append=-2) != 1)
        starts = self._id_offsets[rows[firsts]].tolist()
        stops = (self._id_offsets[rows[lasts] + 1] - len(_END_OF_ID)).tolist()
        names: list[str] = []
        for start, stop in zip(starts, stops, strict=True):
            names += self._id_bytes[start:stop].tobytes().decode().split(_END_OF_ID.decode())
        return names

    def sequences(self, rows: NDArray[np.int64]) -> list[bytes]:
        """Sequences of some rows."""
        starts, stops = self.offsets[rows], self.offsets[rows + 1]
        return [self.residues[a:b].tobytes() for a, b in zip(starts, stops, strict=True)]


def map_array(path: Path, dtype: type[np.generic]) -> NDArray[Any]:
    """Map a file of numbers; read-only, and empty where the file is."""
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r").view(np.ndarray)  # slices of a memmap are slow


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
        for pair in zip(ids, sequences, strict=True):
            self._sha256.update(b"\0%b\n%b" % pair)

    def close(self, counts: dict[str, int]) -> RecordStore:
        """Write offsets, hash and counts, and map the result."""
        self._residues.close()
        self._ids.close()
        for name, lengths in (("offsets", self.lengths), ("id_offsets", self.id_lengths)):
            offsets = np.zeros(len(lengths) + 1, np.int64)
            np.cumsum(np.asarray(lengths, np.int64), out=offsets[1:])
            offsets.tofile(self.folder / f"{name}.bin")
        content = {"sha256": self._sha256.hexdigest(), "counts": counts}
        (self.folder / "store.json").write_text(json.dumps(content))
        return RecordStore(self.folder)
