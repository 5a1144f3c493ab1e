"""The short forms of `predict` and `verify`: inputs as words, aliases, and a config by default."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from virnucpro_pl.cli.checks import SWITCHES, names_model
from virnucpro_pl.cli.shipped import DEMO, config_names
from virnucpro_pl.errors import UsageError, listed
from virnucpro_pl.output.processes import launched_by_rank_0

log = logging.getLogger(__name__)

INPUT = "--data.path"
ALIASES = {"-o": "--writer.path", "--classifier": "--model.classifier"}
"""What is written for an option of `predict`; words that are no options are the INPUTs."""
CONFIG = "virnucpro.yaml"
"""The config where none is named."""


def expand(words: Sequence[str]) -> list[str]:
    """Write a command line of `predict` with the options that its short form stands for.

    Args:
        words: The command line, from `predict` on.

    Returns:
        It in the long form: all inputs stand behind one `--data.path`.

    Raises:
        UsageError: If inputs are given in two ways.
    """
    command, *rest = words
    options: list[str] = []
    short: list[str] = []  # behind all configs, which say what options there are
    inputs: list[str] = []
    awaiting: list[str] | None = None  # where a value goes that may follow
    behind = inputs  # where a word goes that is none
    for word in rest:
        name, equals, value = word.partition("=")
        if awaiting is not None and not word.startswith("--"):
            awaiting.append(word)
            awaiting = None
        elif word == "-" or not word.startswith("-"):
            behind.append(word)
        elif not word.startswith("--") and name not in (*ALIASES, "-c", "-h"):
            known = ", ".join([*(short for short in ALIASES if len(short) == 2), "-c", "-h"])
            raise UsageError(f"There is no option {word}; those of one letter are {known}")
        else:
            place = short if name in ALIASES else options
            place.append(f"{ALIASES.get(name, name)}{equals}{value}")
            # Behind the help of a class there may be its name.
            is_switch = SWITCHES.fullmatch(name) and not name.endswith(".help")
            awaiting = None if equals or is_switch else place
            behind = options if is_input(name) else inputs
    by_option = [n for o in options if is_input((n := o.partition("=")[0]).removesuffix("+"))]
    if any(name.endswith("+") for name in by_option):
        raise UsageError(f"There is no {INPUT}+: write all inputs behind one {INPUT}")
    if len(by_option) > 1 and not launched_by_rank_0():
        log.warning("%s is given more than once: only the inputs of the last are read", INPUT)
    if inputs and by_option:
        raise UsageError(
            f"Inputs are given in two ways: as {listed(inputs)}, and by {INPUT}. Write all of them "
            f"behind {INPUT}, or leave {INPUT} out"
        )
    is_default = not config_names(options) and not names_model(options)
    config = ["--config", CONFIG] if is_default and (inputs or by_option or short) else []
    if _keeps_output(options, short):
        options.append("--writer.overwrite=false")
    given = [f"{INPUT}={inputs[0]}", *inputs[1:]] if inputs else []
    return [command, *config, *options, *short, *given]


def _keeps_output(options: Sequence[str], short: Sequence[str]) -> bool:
    """Tell whether the trial's config, which replaces its own output, is used for another one."""
    given = {option.partition("=")[0] for option in (*options, *short)}
    is_trial = [Path(name).name for name in config_names(options)] == [DEMO]
    return is_trial and ALIASES["-o"] in given and "--writer.overwrite" not in given


def is_input(option: str) -> bool:
    """Tell whether an option names the inputs."""
    return option.replace(".init_args", "") == INPUT


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
