"""Cores that a run may use: what is allowed to it, and each rank's share of that."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_CHOSEN = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables by which a user, or a launcher in their place, says how many threads compute."""


def _is_chosen() -> bool:
    numbers = (os.environ.get(name, "").split(",")[0].strip() for name in _CHOSEN)
    return any(number.isdecimal() and int(number) > 0 for number in numbers)


IS_CHOSEN = _is_chosen()
"""Whether one is set to a number above 0, seen before Lightning sets it for ranks it launches."""


def let_waiting_threads_sleep() -> None:
    """Keep threads that wait for one another from spinning, unless the user wants it.

    On cores that others use, too, a thread that spins holds up the very thread that it waits for.
    OpenMP reads the variable once: this is for before torch is imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def share_of_rank(ranks: int, *, bound: bool = False, root: Path = Path("/")) -> int:
    """Cores of each of several ranks of this machine, at least 1.

    Args:
        ranks: Processes among which the cores of this one are shared.
        bound: Whether each of them was started on cores of its own, as Slurm does; a quota is
            shared all the same.
        root: Folder that holds `proc` and the mounted cgroups; another one is for tests.
    """
    cores = allowed_cores(root)
    cores = cores if bound else cores // ranks
    quota = cgroup_quota(root) / ranks
    return max(1, cores if quota >= cores else math.ceil(quota))


def allowed_cpus() -> set[int]:
    """Processors on which the system may run this process; a core may be two of them."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))  # a Mac


def allowed_cores(root: Path = Path("/")) -> int:
    """Cores of which this process may use a processor at least.

    A thread for each is what MKL, with which torch multiplies matrices, starts by default.

    Args:
        root: Folder that holds `sys`.
    """
    topology = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    return len({tuple(_lines(root / topology.format(n))) or n for n in allowed_cpus()})


class _Mount(NamedTuple):
    """Where a hierarchy of cgroups is seen."""

    point: Path
    top: str
    """Cgroup that lies there: within a container not always the hierarchy's own top."""


def cgroup_quota(root: Path = Path("/")) -> float:
    """Cores' worth of time that the cgroups of this process may use: the least of all, or infinity.

    Both versions count, since one machine may have both (kernel's cgroup-v2.rst, `cpu.max`, and
    sched-bwc.rst, `cpu.cfs_quota_us`).

    Args:
        root: Folder that holds `proc` and the mounted cgroups.
    """
    return min((quota for folder in _cgroups(root) for quota in _quotas(folder)), default=math.inf)


def _cgroups(root: Path) -> Iterator[Path]:
    """Folders of this process's cgroups that may have a quota, and of all above them."""
    mounts = _mounts(root)
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        # Version 2 names no controllers here.
        mount = mounts.get("cpu" if "cpu" in controllers.split(",") else controllers)
        if mount is None:
            continue
        below = os.path.relpath(path, mount.top)
        # A cgroup that cannot be seen from here: what is mounted is all that there is.
        inner = mount.point if below.startswith("..") else mount.point / below
        yield inner
        yield from (p for p in inner.parents if p.is_relative_to(mount.point))


def _mounts(root: Path) -> dict[str, _Mount]:
    """Mounted hierarchies: of version 2 under an empty name, of version 1's quotas as `cpu`."""
    mounts: dict[str, _Mount] = {}
    for line in _lines(root / "proc/self/mountinfo"):  # its fields: proc_pid_mountinfo(5)
        fields, _, kind = line.partition(" - ")
        system, _, options = kind.partition(" ")
        if system == "cgroup2" or (
            system == "cgroup" and "cpu" in options.rpartition(" ")[2].split(",")
        ):
            _, _, _, top, point, *_ = map(_unescaped, fields.split(" "))
            name = "cpu" if system == "cgroup" else ""
            mounts.setdefault(name, _Mount(root / point.lstrip("/"), top))
    return mounts


def _unescaped(field: str) -> str:
    """A field of mountinfo, whose blanks and backslashes are written as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field)


def _quotas(folder: Path) -> Iterator[float]:
    """Quota of one cgroup, in cores, where it has one."""
    words = " ".join(_lines(folder / "cpu.max")).split()
    if not words:
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        words = [line for name in names for line in _lines(folder / name)]
    if len(words) == 2 and all(word.isdecimal() and int(word) for word in words):  # not "max", -1
        quota, period = map(int, words)
        yield quota / period


def _lines(path: Path) -> list[str]:
    """Lines of a file; none of one that is not there, as on a Mac, or cannot be read.

    A quota that nobody can see does not end a run: its threads are then as many as without one.
    """
    try:
        text = os.fsdecode(path.read_bytes())
    except OSError:
        return []
    return [line for line in text.split("\n") if line]
