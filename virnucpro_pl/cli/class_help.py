"""What `virnucpro-pl predict --config NAME --help` says: the options of the classes it names."""

from __future__ import annotations

import argparse
from pathlib import Path
from pkgutil import resolve_name

from jsonargparse import ArgumentParser

from virnucpro_pl.cli.shipped import classes_in, config_names, read_config
from virnucpro_pl.errors import UsageError

_TRAINER = """Beside these, Lightning's own: --trainer.devices, --trainer.strategy,
--trainer.precision and more (virnucpro-pl predict --help-all). --print_config prints what is
set."""


def print_class_help(words: list[str]) -> None:
    """Print the options of the classes that the configs on the command line name.

    Args:
        words: The command line, each config a path.

    Raises:
        UsageError: If they name no class, or one that does not exist.
    """
    classes: dict[str, str] = {}
    for name in config_names(words):
        classes |= classes_in(read_config(Path(name)))
    if not classes:
        raise UsageError("The config names no model: its options are listed by fit --help-all")
    parser = ArgumentParser(
        prog="virnucpro-pl predict",
        usage="%(prog)s --config NAME [options]",
        epilog=_TRAINER,
    )
    for key, path in classes.items():
        inner = {other.rpartition(".")[2] for other in classes if other.startswith(f"{key}.")}
        try:
            parser.add_class_arguments(resolve_name(path), key, skip=inner)
        except (ImportError, AttributeError, ValueError) as error:
            raise UsageError(f"{key}: there is no class {path!r}: {error}") from error
    for action in parser._actions:
        if action.dest in classes:  # whole classes can be given by file, which is no help here
            action.help = argparse.SUPPRESS
    parser.print_help()
