"""Commands that are plain functions: each keyword is an option, which its docstring explains."""

from __future__ import annotations

import json
from argparse import SUPPRESS
from collections.abc import Callable
from typing import get_args, get_type_hints

from jsonargparse import ArgumentError, auto_parser

from virnucpro_pl.cli.literal_paths import read_paths, spell, spell_paths
from virnucpro_pl.cli.mistakes import explain
from virnucpro_pl.errors import UsageError


def call(function: Callable[..., None], words: list[str]) -> None:
    """Call the function of a command with its options, which may be written with hyphens.

    Args:
        function: The function.
        words: The command line from the command's name on.

    Raises:
        UsageError: In one sentence, if an option is unknown, missing, or of a wrong kind.
    """
    prog, options = f"virnucpro-pl {words[0]}", [_with_underscores(word) for word in words[1:]]
    parser = auto_parser(function, prog=prog, exit_on_error=False, allow_abbrev=False)
    known = parser._option_string_actions
    known.pop("--config").help = SUPPRESS  # the parser's own, which no such command takes
    try:
        single, lists = _apart(options, _lists_of(function))
        config = read_paths(parser.parse_args([*spell_paths(single, positional=True), *lists]))
    except ArgumentError as error:
        said = explain(read_paths(str(error)), options, known)
        for option, word in zip(options, words[1:], strict=True):  # as it was typed
            said = said.replace(option.partition("=")[0], word.partition("=")[0])
        raise UsageError(f"{said} (options are listed by {prog} --help)") from error
    arguments = vars(parser.instantiate(config))
    arguments.pop("config", None)
    function(**arguments)


def _lists_of(function: Callable[..., None]) -> list[str]:
    """Options that take any number of words."""
    kinds = get_type_hints(function).items()
    return [f"--{name}" for name, kind in kinds if list[str] in get_args(kind)]


def _apart(words: list[str], lists: list[str]) -> tuple[list[str], list[str]]:
    """Take the options that are lists out of a command line, and write each as the parser reads it.

    All words up to the next option are its items, taken literally.
    """
    single: list[str] = []
    items: dict[str, list[str]] = {}
    place = single
    for word in words:
        option, equals, value = word.partition("=")
        if word.startswith("--"):
            place = items.setdefault(option, []) if option in lists else single
            if place is single:
                single.append(word)
            elif equals:
                place.append(value)
        else:
            place.append(word)
    return single, [f"{option}={json.dumps([*map(spell, items[option])])}" for option in items]


def _with_underscores(word: str) -> str:
    """Let an option be written with hyphens, as its keyword cannot be."""
    option, equals, value = word.partition("=")
    if not option.startswith("--"):
        return word
    return f"--{option[2:].replace('-', '_')}{equals}{value}"
