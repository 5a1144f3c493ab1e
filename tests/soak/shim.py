"""The library that is preloaded, `shim.c`: built, armed here or in a process that is started."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_name("shim.c")
CREATE, WRITE, SYNC, RENAME, REMOVE, FOLDER, CUT, READ = (1 << bit for bit in range(8))
CHANGES = CREATE | WRITE | RENAME | REMOVE | FOLDER | CUT
NOTHING, BEFORE, AFTER, TORN, FAIL, SHORT, FULL, LATE, UNSEEN = range(9)
FOREVER = 1 << 40


class Rule(NamedTuple):
    """What happens at which calls of the system."""

    patterns: str
    """Pieces of paths, four at most, with | between them."""
    operations: int
    """Bits of the calls that count."""
    first: int
    """Number of the first of them at which it happens, from 0."""
    last: int
    action: int
    value: int = 0
    """Signal, errno, bytes or milliseconds."""
    group: bool = False
    """Whether a signal is for the whole group of processes."""


def build(folder: Path) -> Path | None:
    """Compile it; None where there is no compiler, or the system is not Linux."""
    library = folder / "shim.so"
    compiler = shutil.which("cc")
    if compiler is None or os.uname().sysname != "Linux":
        return None
    if not library.exists() or library.stat().st_mtime < SOURCE.stat().st_mtime:
        made = library.with_suffix(f".{os.getpid()}")
        words = [compiler, "-O2", "-shared", "-fPIC", SOURCE, "-o", made, "-ldl"]
        subprocess.run(words, check=True)
        made.replace(library)
    return library


def loaded() -> bool:
    """Tell whether this process has it."""
    return hasattr(ctypes.CDLL(None), "soak_arm")


def arm(folder: Path, rule: Rule, events: int = -1) -> None:
    """Have the rule apply to this process from now on.

    Args:
        folder: Only files below it count.
        rule: What happens when.
        events: File descriptor to which each call that counts is written.
    """
    patterns = rule.patterns.encode()
    ctypes.CDLL(None).soak_arm(
        *(os.fsencode(folder), patterns, rule.operations),
        *(ctypes.c_long(rule.first), ctypes.c_long(rule.last)),
        *(rule.action, rule.value, int(rule.group), events),
    )


def set_clock_back(seconds: float) -> None:
    """Have this process read another time of day."""
    ctypes.CDLL(None).soak_clock(ctypes.c_double(-seconds))


def variables(folder: Path, rule: Rule, rank: int) -> dict[str, str]:
    """The environment that arms a process that is started, where it is of this rank."""
    fields = (
        *(folder, rule.patterns, rule.operations, rule.first, rule.last),
        *(rule.action, rule.value, int(rule.group)),
    )
    return {"SOAK_ARM": ";".join(map(str, fields)), "SOAK_RANK": str(rank)}
