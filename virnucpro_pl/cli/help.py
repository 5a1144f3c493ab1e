"""What `virnucpro-pl --help` and `virnucpro-pl predict --config NAME --help` say."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

from jsonargparse import ArgumentParser

from virnucpro_pl.cli.shipped import (
    classes_in,
    config_names,
    read_config,
    shipped_configs,
    with_shipped_configs,
)
from virnucpro_pl.errors import UsageError

COMMANDS = {
    "bench": "measure this program on your own card, beside its peers",
    "compare": "tell how far two embedding files or prediction tables are apart",
    "export": "write the vectors of an embedding file as other programs read them",
    "fit": "train a classifier on embedding files",
    "plot": "draw results or an embedding file",
}
"""Commands beside `predict`: each is the function of that name in the module of that name."""

EPILOG = """exit codes: 0 every row written; 1 unexpected failure, or a gate of compare not met;
2 bad usage, configuration or input (nothing was computed); 3 numerical instability (committed rows
are kept); 130 Ctrl-C; 143 SIGTERM.
An interrupted command continues where it was when it is run again."""

_HELP = """usage: virnucpro-pl COMMAND [options]

Find viral sequences in sequencing data: VirNucPro as a PyTorch Lightning package.

commands:
  predict   sequences in, calls or embeddings out
{commands}

  virnucpro-pl COMMAND --help                 options of a command
  virnucpro-pl predict --config NAME --help   options of what a config names
  virnucpro-pl predict --config demo.yaml     a trial without any download

shipped configs:
{configs}

{epilog}"""

_TRAINER = """Beside these, Lightning's own: --trainer.devices, --trainer.strategy,
--trainer.precision and more (virnucpro-pl predict --help). --print_config prints what is set."""


def print_help() -> None:
    """Print the commands, the shipped configs, each with its first line, and the exit codes."""
    commands = [f"  {name:<9} {use}" for name, use in COMMANDS.items()]
    configs = [
        f"  {path.name:<22} {path.read_text(encoding='utf-8').partition(chr(10))[0].lstrip('# ')}"
        for path in sorted(shipped_configs().glob("*.yaml"))
    ]
    text = _HELP.format(commands="\n".join(commands), configs="\n".join(configs), epilog=EPILOG)
    sys.stdout.write(f"{text}\n")


def wants_class_help(words: list[str]) -> bool:
    """Tell whether a command line asks for help with a config."""
    asks = "--help" in words or "-h" in words
    return asks and any(w.partition("=")[0] in ("-c", "--config") for w in words)


def print_class_help(words: list[str]) -> None:
    """Print the options of the classes that the config on the command line names.

    Raises:
        UsageError: If there is no such config, or it names no such class.
    """
    classes: dict[str, str] = {}
    for name in config_names(with_shipped_configs(words)):
        classes |= classes_in(read_config(Path(name)))
    if not classes:
        raise UsageError("The config names no model: its options are listed by fit --help")
    parser = ArgumentParser(
        prog="virnucpro-pl predict",
        usage="%(prog)s --config NAME [options]",
        epilog=_TRAINER,
    )
    for key, path in classes.items():
        module, _, name = path.rpartition(".")
        inner = {other.rpartition(".")[2] for other in classes if other.startswith(f"{key}.")}
        try:
            parser.add_class_arguments(getattr(import_module(module), name), key, skip=inner)
        except (ImportError, AttributeError, ValueError) as error:
            raise UsageError(f"{key}: there is no class {path!r}: {error}") from error
    for action in parser._actions:
        if action.dest in classes:  # whole classes can be given by file, which is no help here
            action.help = argparse.SUPPRESS
    parser.print_help()
