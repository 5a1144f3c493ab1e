"""Paths on the command line, taken literally.

The parser reads every value as YAML, some of them twice, so that a file named `null`, `#1.faa` or
`a: b.faa` would become something else. Such paths go through it in another spelling, that of their
bytes, and get their own back in whatever comes out of it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from virnucpro_pl.cli.short_form import is_input

_OPTION = re.compile(
    r"--(data|writer)\.path|--data(\.\w+)?\.(dnabert_s|esm2)"
    r"|--model(\.\w+)?\.(weights|tokenizer|classifier)|--(output|table|workload)"
)
"""Options whose value is a path."""
_SPELT = re.compile(r"path-bytes-((?:[0-9a-f]{2})*)")


def spell_paths(words: Sequence[str], *, positional: bool = False) -> list[str]:
    """Spell the paths of a command line by their bytes; inputs that follow each other as a list.

    Args:
        words: The command line.
        positional: Whether words that are neither options nor values are paths.
    """
    spelt: list[str] = []
    flag, before, inputs = "", "", list[str]()
    for word in words:
        option, equals, value = word.partition("=")
        if flag and not word.startswith("--"):
            spelt.append(spell(word) if _is_path(flag) else word)
            before, inputs = "", [word] if is_input(flag) else []
            flag = ""
        elif word.startswith("--"):
            path = equals and _is_path(option)
            spelt.append(f"{option}={spell(value)}" if path else word)
            before, inputs = f"{option}=", [value] if path and is_input(option) else []
            flag = "" if equals else option
        elif inputs and (word == "-" or not word.startswith("-")):
            inputs.append(word)
            spelt[-1] = before + json.dumps([spell(path) for path in inputs])
        else:
            inputs = []
            spelt.append(spell(word) if positional and word != "-h" else word)
    return spelt


def read_paths(value: Any) -> Any:
    """Give the paths in a text, a list or a namespace their own spelling; the last in place."""
    if isinstance(value, str):
        return _SPELT.sub(lambda spelt: os.fsdecode(bytes.fromhex(spelt[1])), value)
    if isinstance(value, Path):
        return Path(read_paths(str(value)))
    if isinstance(value, list):
        return [read_paths(inner) for inner in value]
    if isinstance(value, Namespace):
        vars(value).update({key: read_paths(inner) for key, inner in vars(value).items()})
    return value


def show_paths(namespace: Namespace) -> Namespace:
    """Give a copy for people to read: paths as they are, bytes that are no text as escapes."""
    copy: Namespace = _shown(read_paths(namespace.clone()))
    return copy


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    if isinstance(value, Path):
        return Path(_shown(str(value)))
    if isinstance(value, list):
        return [_shown(inner) for inner in value]
    if isinstance(value, Namespace):
        vars(value).update({key: _shown(inner) for key, inner in vars(value).items()})
    return value


def _is_path(option: str) -> bool:
    return _OPTION.fullmatch(option.replace(".init_args", "")) is not None


def spell(text: str) -> str:
    """A path, or a text that is as free as one, in the spelling that YAML leaves as it is."""
    return f"path-bytes-{os.fsencode(text).hex()}"
