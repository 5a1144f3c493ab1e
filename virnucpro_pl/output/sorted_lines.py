"""Sorts more lines than fit into memory: sorted runs on disk, merged."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import Any

_LINES = 1 << 18
"""Lines that are sorted at a time."""


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
    first = sorted(islice(rest, _LINES), key=key)
    if len(first) < _LINES:
        yield from first
        return
    rest = chain(first, rest)
    try:
        while block := sorted(islice(rest, _LINES), key=key):
            runs.append(scratch / f"sorted-{len(runs)}")
            with runs[-1].open("w", encoding="utf-8", newline="\n") as file:
                file.writelines(block)
        with ExitStack() as stack:
            opened = (run.open(encoding="utf-8", newline="\n") for run in runs)
            yield from heapq.merge(*map(stack.enter_context, opened), key=key)
    finally:
        for run in runs:
            run.unlink(missing_ok=True)
