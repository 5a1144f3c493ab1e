"""Processes as the system shows them: descendants of this one, what is left of them."""

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path

_SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER (prctl.h): orphans below this process become its children."""


def adopt_orphans() -> None:
    """From now on nobody who is started below this process escapes its sight."""
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


def descendants(of: int | None = None) -> list[int]:
    """Process ids below a process, this one by default, that are alive; zombies are not."""
    parents, alive = {}, set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            parents[int(folder.name)] = int(fields[1])
            if fields[0] not in "ZX":
                alive.add(int(folder.name))
    found, above = [], {of or os.getpid()}
    while above:
        above = {pid for pid, parent in parents.items() if parent in above}
        found += sorted(above & alive)
    return found


def signal_all(pids: list[int], number: int) -> None:
    """Send a signal to those that are still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def reap() -> dict[int, int]:
    """Exit codes of children that have ended since; negative of those that a signal has ended."""
    ended = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            ended[pid] = os.waitstatus_to_exitcode(status)
    return ended


def clear_up() -> None:
    """End all that is below this process."""
    while left := descendants():
        signal_all(left, signal.SIGKILL)
        reap()
        time.sleep(0.01)
    reap()
