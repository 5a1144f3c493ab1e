"""The JSON file of figures that a command writes if it is asked to, in place of an earlier one."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from virnucpro_pl.errors import OutputError, UsageError
from virnucpro_pl.output.atomic_files import write_json
from virnucpro_pl.output.overwriting import refuse_inputs


def check_figures_file(output: Path, inputs: Iterable[Path], keys: Iterable[str]) -> None:
    """Refuse a file of figures that cannot be written, or that would replace something else.

    Args:
        output: Value of `--output`. What is no regular file, such as a pipe, is never replaced.
        inputs: Files and folders that are read.
        keys: What each earlier file of the same command holds.

    Raises:
        UsageError: If so.
    """
    if output.is_dir():
        raise UsageError(f"--output {output} is a folder: name a file for the figures")
    refuse_inputs([output], inputs)
    if _is_stream(output):
        return
    if not output.parent.is_dir() or not os.access(output.parent, os.W_OK):
        what = "cannot be written to" if output.parent.is_dir() else "does not exist"
        raise UsageError(f"--output {output}: the folder {output.parent} {what}")
    if output.exists() and not holds(output, keys):
        raise UsageError(
            f"--output {output} is there, and no JSON report of this command: name another file"
        )


def write_figures(output: Path, figures: dict[str, Any]) -> None:
    """Write a file of figures: whole or not at all, unless it is a pipe or the like.

    Raises:
        OutputError: If it cannot be written.
    """
    try:
        if _is_stream(output):
            with output.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(figures, indent=2) + "\n")
        else:
            write_json(output, figures)
    except OSError as error:
        raise OutputError(f"{output} cannot be written: {error}") from error


def holds(file: Path, keys: Iterable[str]) -> bool:
    """Tell whether a file is a JSON object with these keys, or nothing at all, as mktemp makes."""
    if not file.is_file():
        return False
    try:
        text = file.read_text(encoding="utf-8")
        content = json.loads(text) if text else dict.fromkeys(keys)
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.keys() >= set(keys)


def plain(value: Any) -> Any:
    """Give named tuples as dictionaries, and numbers that JSON does not know as None."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_stream(output: Path) -> bool:
    """Tell a pipe, a device, or what this process prints to, from a file that can be replaced."""
    try:
        target = output.stat()
        printed = [os.fstat(descriptor) for descriptor in (1, 2)]
    except OSError:  # there is none yet, or nothing is printed to
        return output.exists() and not output.is_file()
    return not output.is_file() or any(os.path.samestat(target, there) for there in printed)
