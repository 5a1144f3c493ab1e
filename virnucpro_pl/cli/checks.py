"""What can be told of a command line before anything is imported that knows the options."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from virnucpro_pl.cli.shipped import (
    classes_in,
    config_names,
    configs_for,
    read_config,
    shipped_configs,
    short_name,
)
from virnucpro_pl.errors import UsageError, listed

SWITCHES = re.compile(r"-h|--help|--print_config|--(\w+\.)+help")
"""Options that need no value."""
_DEVICES = re.compile(r"auto|-1|[1-9]\d*|\[\d+(, ?\d+)*\]|\d+,|\d+(,\d+)+")


def check_values(words: Sequence[str]) -> None:
    """Check that each option has a value.

    Raises:
        UsageError: If one has none.
    """
    for word, following in zip(words, [*words[1:], "--"], strict=True):
        option, equals, _ = word.partition("=")
        lacks = word.startswith("--") and not equals and following.startswith("--")
        if (lacks or (word == "-c" and following == "--")) and not SWITCHES.fullmatch(option):
            example = "esm2.yaml" if option in ("-c", "--config") else "true or false for a switch"
            spelt = f"; one that begins with -- as {option}=VALUE" if following != "--" else ""
            raise UsageError(f"{word} has no value: write one behind it, such as {example}{spelt}")


def check_no_config(words: Sequence[str]) -> None:
    """Check that a command that takes no config is given none.

    Raises:
        UsageError: If it is.
    """
    if config_names(words):
        command = f"virnucpro-pl {words[0]}"
        raise UsageError(f"{command} takes no config: its options are listed by {command} --help")


def check_configs(words: Sequence[str]) -> None:
    """Check that the configs of `predict` or `fit` are YAML and of this command.

    Args:
        words: The command line, each config a path.

    Raises:
        UsageError: If not.
    """
    command, names = words[0], config_names(words)
    offer = f"the shipped ones of {command} are " + listed([p.name for p in configs_for(command)])
    shipped = [short_name(name) for name in names if Path(name).parent == shipped_configs()]
    if len(shipped) > 1:
        raise UsageError(f"--config takes one shipped config, not {' and '.join(shipped)}")
    with_classes = [name for name in names if classes_in(read_config(Path(name)))]
    piped = any(not Path(name).is_file() for name in names)  # read once only, by the parser
    if command == "fit" and with_classes:
        name = short_name(with_classes[0])
        raise UsageError(f"{name} is a config of predict, not of fit: {offer}")
    if command == "predict" and not (with_classes or piped or names_model(words)):
        if names:
            name = short_name(names[0])
            raise UsageError(f"{name} is no config of predict, since it names no model: {offer}")
        raise UsageError(f"predict needs a config, such as --config virnucpro.yaml: {offer}")


def names_model(words: Sequence[str]) -> bool:
    """Tell whether an option says of which class the model is."""
    return any(re.match(r"--model(\.class_path)?(=|$)", word) for word in words)


def check_devices_option(devices: Any) -> None:
    """Check that `--trainer.devices` is one that Lightning knows.

    Raises:
        UsageError: If it is not.
    """
    if not _DEVICES.fullmatch(str(devices)):
        raise UsageError(
            "--trainer.devices must be a number of devices, auto, or a list of their numbers such "
            f"as [0, 2], not {devices}"
        )
