"""The short forms of `predict` and `verify`: inputs as words, aliases, and a config by default."""

from __future__ import annotations

from collections.abc import Sequence

from virnucpro_pl.cli.checks import SWITCHES, names_model
from virnucpro_pl.cli.shipped import config_names
from virnucpro_pl.errors import UsageError, listed

INPUT = "--data.path"
ALIASES = {"-o": "--writer.path", "--classifier": "--model.classifier"}
"""What is written for an option of `predict`; a word that is no option is an INPUT."""
CONFIG = "virnucpro.yaml"
"""The config where none is named."""


def expand(words: Sequence[str]) -> list[str]:
    """Write a command line of `predict` with the options that its short form stands for.

    Args:
        words: The command line, from `predict` on.

    Raises:
        UsageError: If more than one input is given.
    """
    command, *rest = words
    options: list[str] = []
    short: list[str] = []  # behind all configs, which say what options there are
    inputs: list[str] = []
    awaiting: list[str] | None = None  # where a value goes that may follow
    for word in rest:
        name, equals, value = word.partition("=")
        if awaiting is not None and not word.startswith("--"):
            awaiting.append(word)
            awaiting = None
        elif word == "-" or not word.startswith("-"):
            inputs.append(word)
        else:
            place = short if name in ALIASES else options
            place.append(f"{ALIASES.get(name, name)}{equals}{value}")
            # Behind the help of a class there may be its name.
            is_switch = SWITCHES.fullmatch(name) and not name.endswith(".help")
            awaiting = None if equals or is_switch else place
    if len(inputs) > 1:
        raise UsageError(f"predict reads one input, not {listed(inputs)}: join them into one file")
    by_option = any(option.partition("=")[0] == INPUT for option in options)
    if inputs and by_option:
        raise UsageError(f"The input is given twice: as {inputs[0]} and by {INPUT}")
    is_default = not config_names(options) and not names_model(options)
    config = ["--config", CONFIG] if is_default and (inputs or by_option) else []
    return [command, *config, *options, *short, *(f"{INPUT}={path}" for path in inputs)]


def expand_verify(words: Sequence[str]) -> list[str]:
    """Write a command line of `verify` as one of `predict` that lacks input and output.

    Args:
        words: The command line, from `verify` on.

    Raises:
        UsageError: If an input or an output is given.
    """
    predict = expand(["predict", *words[1:]])
    for word in predict:
        option = word.partition("=")[0].replace(".init_args", "")
        if option in (INPUT, ALIASES["-o"]):
            raise UsageError(
                f"verify reads two contigs of its own and keeps no output: leave out {option}"
                + (", for which a word that is no option stands" if option == INPUT else "")
            )
    return predict if config_names(predict) else ["predict", "--config", CONFIG, *predict[1:]]
