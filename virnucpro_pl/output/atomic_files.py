"""Files that are either whole or not there: written under a temporary name, flushed, renamed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_TEMPORARY = ".tmp-"
"""Prefix of a file that is still being written."""


def temporary_name(path: Path, folder: Path | None = None) -> Path:
    """Name of a file while it is being made.

    Args:
        path: Final name.
        folder: A folder on the same file system; that of `path` by default.
    """
    return (folder or path.parent) / f"{_TEMPORARY}{os.getpid()}-{path.name}"


@contextmanager
def published(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Give a temporary path to write to, and rename it to `path` once it is on disk.

    After an exception the temporary file is removed and `path` is as it was.

    Args:
        path: Final name.
        durable: Whether to wait until the disk has it.
    """
    temporary = temporary_name(path)
    try:
        yield temporary
        publish(temporary, path, durable=durable)
    finally:
        temporary.unlink(missing_ok=True)


def publish(temporary: Path, path: Path, *, durable: bool = True) -> None:
    """Rename a file that is whole, once it is on disk.

    Args:
        temporary: Its name until now, on the same file system.
        path: Final name.
        durable: Whether to wait until the disk has it.
    """
    if durable:
        flush(temporary)
    temporary.replace(path)
    if durable:
        flush(path.parent)


def publish_folder(folder: Path, path: Path, replaced: Path, *, overwrite: bool) -> None:
    """Rename a folder that is whole, once it is on disk.

    Args:
        folder: Its name until now, on the same file system.
        path: Final name.
        replaced: Where a folder that is there lies meanwhile; `restore_folder` finds it after a
            kill.
        overwrite: Whether to replace a folder that is there and not empty; else that is an OSError.
    """
    for file in (*folder.iterdir(), folder):
        flush(file)
    try:
        if path.is_symlink() or (overwrite and path.exists() and any(path.iterdir())):
            path.rename(replaced)
        folder.rename(path)  # also in the place of an empty folder
    finally:  # whatever comes between, a signal among it: there shall be one of both
        restore_folder(path, replaced)
    flush(path.parent)
    if replaced.is_symlink():
        replaced.unlink()
    elif replaced.exists():
        shutil.rmtree(replaced)


def restore_folder(path: Path, replaced: Path) -> None:
    """Put back what a killed run was about to replace."""
    if not path.exists() and (replaced.is_symlink() or replaced.exists()):
        replaced.rename(path)


def write_json(path: Path, content: Any, *, durable: bool = True) -> None:
    """Write one JSON value to a file, whole or not at all."""
    with published(path, durable=durable) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def flush(path: Path) -> None:
    """Wait until the disk has a file or a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
