"""Locks on the folder of parts: one run at a time writes an output.

They are the system's, which gives them back however a process ends: a file that says who is at work
would outlive a killed run.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import time
from pathlib import Path
from typing import IO

from virnucpro_pl.errors import UsageError
from virnucpro_pl.output.processes import ORPHAN_SECONDS

log = logging.getLogger(__name__)

_PATIENCE = ORPHAN_SECONDS + 5.0
"""How long to wait for ranks of a killed run, which end when they miss their launcher."""


class Locks:
    """The locks that this process holds."""

    def __init__(self, folder: Path, output: Path) -> None:
        """Hold none yet.

        Args:
            folder: Where the lock files are.
            output: What is written, for messages.
        """
        self.folder = folder
        self.output = output
        self._held: list[IO[str]] = []

    def take(self, rank: int) -> None:
        """Lock the output for this run, once no rank of a killed one is left.

        Rank 0 comes first. Each other rank locks a file of its own: no other run begins while any
        rank may still commit.

        Raises:
            UsageError: If another run is writing it.
        """
        refusal = f"Another run is writing {self.output}"
        if rank > 0:
            self._held.append(_lock(self.folder / f"lock-{rank}", refusal))
            return
        self._held.append(_lock(self.folder / "lock", f"{refusal}: wait for it"))
        deadline = time.monotonic() + _PATIENCE
        for path in self.folder.glob("lock-*"):
            while True:  # ranks of a killed run end when they miss their launcher
                try:
                    _lock(path, f"A rank of another run is still writing {self.output}").close()
                    break
                except UsageError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.2)

    def release(self) -> None:
        """Give the locks back."""
        for file in self._held:
            file.close()
        self._held.clear()


def _lock(path: Path, refusal: str) -> IO[str]:
    """Lock a file, as long as it is open."""
    file = path.open("a")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            file.close()
            raise UsageError(refusal) from error
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        log.warning(
            "%s: this file system has no locks (%s); make sure yourself that no other run "
            "writes the same output",
            path,
            error,
        )
    return file
