"""Outputs that must not be: those that the run reads, or stands in."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
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


def check_exports(
    outputs: Mapping[Path, Callable[[Path], bool]],
    inputs: Iterable[Path],
    to: str,
    overwrite: bool,
) -> None:
    """Refuse files of `export` that cannot be written, or that would replace something else.

    Args:
        outputs: The files, and what tells whether one that is there is such an export, by its
            return value, or an OSError, ValueError or KeyError of another format. An empty file,
            as mktemp makes it, need not be.
        inputs: Files that are read.
        to: The format, for messages.
        overwrite: Whether exports that are there may be replaced.

    Raises:
        UsageError: If so.
    """
    sources = list(inputs)
    for path in outputs:
        if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            what = "cannot be written to" if path.parent.is_dir() else "does not exist"
            raise UsageError(f"{path}: the folder {path.parent} {what}")
        if path.is_dir():
            raise UsageError(f"{path} is a folder: --output names another file")
        refuse_inputs([path], sources)
        if path.exists() and not overwrite:
            raise UsageError(
                f"{path} exists already; --overwrite true replaces it, --output names another file"
            )
    for path, is_own in outputs.items():
        if not path.exists() or (path.is_file() and path.stat().st_size == 0):
            continue
        try:
            is_export = path.is_file() and is_own(path)
        except (OSError, ValueError, KeyError):  # another format, or damaged
            is_export = False
        if not is_export:
            raise UsageError(
                f"{path} is not overwritten, since it is nothing that export --to {to} writes: "
                "--output names another file"
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
