"""Sorts lines: few in memory, and more than fit there as sorted runs on disk, merged."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

_LINES = 1 << 18
"""Lines that are sorted at a time; fewer never touch the disk."""


def sort_lines(
    lines: Iterable[str], scratch: Path, key: Callable[[str], Any] | None = None
) -> Iterator[str]:
    """Yield lines in order; equal ones as they came.

    Args:
        lines: Each with its end.
        scratch: Folder for the runs, which are removed.
        key: What a line is sorted by; its text by default.
    """
    runs: list[Path] = []
    rest = iter(lines)
    block = sorted(islice(rest, _LINES), key=key)
    if len(block) < _LINES:
        yield from block
        return
    try:
        while block:
            runs.append(scratch / f"sorted-{len(runs)}")
            with runs[-1].open("w", encoding="utf-8", newline="\n") as file:
                file.writelines(block)
            block = sorted(islice(rest, _LINES), key=key)
        with ExitStack() as stack:
            opened = (run.open(encoding="utf-8", newline="\n") for run in runs)
            yield from heapq.merge(*map(stack.enter_context, opened), key=key)
    finally:
        for run in runs:
            run.unlink(missing_ok=True)
