"""Outputs that must not be: those that the run reads, or stands in."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from virnucpro_pl.errors import UsageError


def refuse_inputs(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Refuse outputs that would replace or delete what the run reads, overwriting asked for or not.

    Args:
        outputs: Files and folders that may be written, replaced or emptied.
        inputs: Files and folders that are read.

    Raises:
        UsageError: If an output is an input, by its path or by a link, or a folder that holds one.
    """
    sources = list(inputs)
    for output in outputs:
        for source in sources:
            if is_or_holds(output, source):
                relation = "is" if _is(output, [source]) else "holds"
                raise UsageError(
                    f"{output} {relation} an input of this run ({source}), which is never "
                    "overwritten: name another output"
                )


def is_or_holds(output: Path, source: Path) -> bool:
    """Tell whether one path is another, or a folder above it, with links followed or not."""
    ways = Path(os.path.abspath(source)), Path(os.path.realpath(source))
    return _is(output, [place for way in ways for place in (way, *way.parents)])


def is_taken(output: Path) -> bool:
    """Tell whether there is an output already; an empty folder is none."""
    return output.exists() and not (output.is_dir() and not any(output.iterdir()))


def _is(output: Path, places: list[Path]) -> bool:
    target = _stat(output)
    others = (_stat(place) for place in places)
    return target is not None and any(
        other is not None and os.path.samestat(target, other) for other in others
    )


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:  # what is not there is no input yet, and no output either
        return None
