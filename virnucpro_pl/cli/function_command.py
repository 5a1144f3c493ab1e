"""Commands that are plain functions: each keyword is an option, which its docstring explains."""

from __future__ import annotations

from argparse import SUPPRESS
from collections.abc import Callable

from jsonargparse import ArgumentError, auto_parser

from virnucpro_pl.cli.literal_paths import read_paths, spell_paths
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
        config = read_paths(parser.parse_args(spell_paths(options, positional=True)))
    except ArgumentError as error:
        said = explain(read_paths(str(error)), options, known)
        for option, word in zip(options, words[1:], strict=True):  # as it was typed
            said = said.replace(option.partition("=")[0], word.partition("=")[0])
        raise UsageError(f"{said} (options are listed by {prog} --help)") from error
    arguments = vars(parser.instantiate(config))
    arguments.pop("config", None)
    function(**arguments)


def _with_underscores(word: str) -> str:
    """Let an option be written with hyphens, as its keyword cannot be."""
    option, equals, value = word.partition("=")
    if not option.startswith("--"):
        return word
    return f"--{option[2:].replace('-', '_')}{equals}{value}"
