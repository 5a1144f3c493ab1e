"""The file that becomes an embedding file: rows at fixed places, and HDF5 around them.

A kill while HDF5 writes can leave a file that does not open. So the rows are not written by HDF5:
it sets their places aside at the very beginning, in one piece, and touches them no more. Whatever
becomes of the rest of the file, rows that are on disk are there, and a new run has HDF5 write the
same rest around them once more.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from virnucpro_pl.output.part_file import runs
from virnucpro_pl.output.quiet_file import QuietFile

_CHUNK_BYTES = 1 << 18
_LIBRARY = ("v110", "v110")
"""The first HDF5 (of 2016) whose chunks of a fixed number of rows lie one behind the other."""


class RowFile:
    """An HDF5 file in the making, with `/embeddings` (N, D) and nothing else yet.

    Attributes:
        file: What HDF5 writes.
    """

    def __init__(self, path: Path, count: int, width: int, dtype: str) -> None:
        """Create the file; rows that are in one of the same sizes stay.

        Args:
            path: Its name.
            count: N, rows.
            width: D, numbers of a row.
            dtype: `float32` or `float16`.

        Raises:
            OSError: If it cannot be created.
            RuntimeError: If HDF5 does not lay it out in one piece.
        """
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.width = width
        self._row_bytes = width * self.dtype.itemsize
        self._disk = QuietFile(path, keep=True)
        self.file = h5py.File(self._disk, "w", libver=_LIBRARY)
        self._start = self._set_aside(count)
        self._disk.least_size = self._start + count * self._row_bytes

    def _set_aside(self, count: int) -> int:
        """Create `/embeddings`, and tell at which byte it begins."""
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        rows = max(1, min(count, _CHUNK_BYTES // self._row_bytes))
        plan.set_obj_track_times(False)
        if count:
            plan.set_chunk((rows, self.width))
            plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple((count, self.width))
        kind = h5py.h5t.py_create(self.dtype)
        dataset = h5py.h5d.create(self.file.id, b"embeddings", kind, space, plan)
        if not count:
            return 0
        last = (count - 1) // rows * rows
        first, end = (dataset.get_chunk_info_by_coord((row, 0)).byte_offset for row in (0, last))
        if end != first + last * self._row_bytes:
            raise RuntimeError(
                f"HDF5 {h5py.version.hdf5_version} lays chunks out in a way that is not known here"
            )
        return int(first)

    def write(self, rows: NDArray[np.int64], vectors: NDArray[Any]) -> NDArray[np.uint32]:
        """Write some rows, and wait until the disk has them.

        Args:
            rows: (n,) their numbers.
            vectors: (n, D) what they hold.

        Returns:
            (n,) checksum of each.

        Raises:
            OSError: If the disk is full, for example, now or when HDF5 wrote.
            ValueError: If they are not of this width.
        """
        stored = np.ascontiguousarray(vectors, self.dtype)
        if stored.shape != (len(rows), self.width):
            raise ValueError(f"vectors of shape {vectors.shape}, not {(len(rows), self.width)}")
        for run in runs(rows) if len(rows) else ():
            left, place = stored[run].data.cast("B"), self._place(rows[run.start])
            while left:  # less than all where a disk is almost full
                written = os.pwrite(self._disk.fileno(), left, place)
                left, place = left[written:], place + written
        self.raise_error()
        os.fsync(self._disk.fileno())
        return np.fromiter(map(zlib.crc32, stored), np.uint32, len(stored))

    def checksums(self, rows: NDArray[np.int64]) -> NDArray[np.uint32]:
        """Checksum (n,) of each of some rows, as they are on disk.

        Raises:
            OSError: If they cannot be read.
        """
        descriptor, size = self._disk.fileno(), self._row_bytes
        read = (os.pread(descriptor, size, self._place(row)) for row in rows)
        return np.fromiter(map(zlib.crc32, read), np.uint32, len(rows))

    def _place(self, row: int | np.int64) -> int:
        return self._start + int(row) * self._row_bytes

    def raise_error(self) -> None:
        """Raise what HDF5 was not told of.

        Raises:
            OSError: If the disk was full, for example.
        """
        if self._disk.error is not None:
            raise self._disk.error

    def close(self) -> None:
        """Let HDF5 write the rest, and close the file."""
        try:
            self.file.close()
        finally:
            self._disk.close()
