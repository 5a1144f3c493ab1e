"""A file that hides errors from HDF5, which crashes when a process ends in which it met one."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any


class QuietFile(io.FileIO):
    """A new file that h5py can write to, whatever the disk says.

    After an error it pretends that all goes well, and touches the disk no more. Writes go straight
    from HDF5's buffers to the disk, and other threads run meanwhile.

    Attributes:
        error: What went wrong first; look at it once h5py has closed the file.
        least_size: Bytes that HDF5 does not cut off: what was there, until it is set.
    """

    def __init__(self, path: Path, keep: bool = False) -> None:
        """Create the file.

        Args:
            path: Its name.
            keep: Whether the content of a file that is there stays. HDF5 sees none of it, and
                writes over some of it.

        Raises:
            OSError: If it cannot be created.
        """
        super().__init__(path, "r+" if keep and path.exists() else "w+")
        self.error: OSError | None = None
        self.least_size = path.stat().st_size
        self._end = 0

    def write(self, data: Any, /) -> int:
        """Write all of it, unless there has been an error."""
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while left and self.error is None:
                left = left[super().write(left) :]  # less than all where a disk is almost full
            self._end = max(self._end, self.tell())
        except OSError as error:
            self.error = error
        return size

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to a place; the end is that of what has been written here."""
        if whence == os.SEEK_END:
            offset, whence = self._end + offset, os.SEEK_SET
        return super().seek(offset, whence)

    def readinto(self, buffer: Any, /) -> int:
        """Fill a buffer: with zeros where there is nothing, or nothing can be read."""
        left = memoryview(buffer).cast("B")
        size = len(left)
        try:
            while left and self.error is None and (count := super().readinto(left)):
                left = left[count:]
        except OSError as error:
            self.error = error
        left[:] = bytes(len(left))
        return size

    def truncate(self, size: int | None = None, /) -> int:
        """Set the length, unless there has been an error."""
        try:
            if self.error is None:
                self._end = self.tell() if size is None else size
                super().truncate(max(self._end, self.least_size))
        except OSError as error:
            self.error = error
        return self.tell() if size is None else size
