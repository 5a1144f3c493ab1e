"""A file that hides errors from HDF5, which crashes when a process ends in which it met one."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any


class QuietFile(io.FileIO):
    """A new file that h5py can write to, whatever the disk says.

    After an error it pretends that all goes well, and touches the disk no more. Writes go straight
    from HDF5's buffers to the disk, and other threads run meanwhile.

    Attributes:
        error: What went wrong first; look at it once h5py has closed the file.
    """

    def __init__(self, path: Path) -> None:
        """Create the file.

        Args:
            path: Its name; a file that is there is emptied.

        Raises:
            OSError: If it cannot be created.
        """
        super().__init__(path, "w+")
        self.error: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write all of it, unless there has been an error."""
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while left and self.error is None:
                left = left[super().write(left) :]  # less than all where a disk is almost full
        except OSError as error:
            self.error = error
        return size

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
                super().truncate(size)
        except OSError as error:
            self.error = error
        return self.tell() if size is None else size
