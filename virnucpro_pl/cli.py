"""The command `virnucpro-pl`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace, auto_cli
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from virnucpro_pl.errors import UnwritableError, UsageError
from virnucpro_pl.output.launch import (
    Signals,
    announce_rank_0,
    launched_by_rank_0,
    lost_another_rank,
    outlive_rank_0,
    watch_rank_0,
)
from virnucpro_pl.precision import resolve_precision, should_use_fp16, unify_precision
from virnucpro_pl.shipped import shipped_configs, with_shipped_configs

__all__ = ["main"]

log = logging.getLogger("virnucpro_pl")

COMMANDS = {
    "bench": "measure this program on your own card, beside its peers",
    "compare": "tell how far two embedding files or prediction tables are apart",
    "export": "write the vectors of an embedding file as other programs read them",
    "fit": "train a classifier on embedding files",
    "plot": "draw results or an embedding file",
}
"""Commands beside `predict`: each is the function of that name in the module of that name."""

HELP = """usage: virnucpro-pl COMMAND [options]

Find viral sequences in sequencing data: VirNucPro as a PyTorch Lightning package.

commands:
  predict   sequences in, calls or embeddings out
{commands}

  virnucpro-pl COMMAND --help               options of a command
  virnucpro-pl predict --config NAME --help options of what a config names
  virnucpro-pl predict --config demo.yaml   a trial without any download

shipped configs:
{configs}

{epilog}"""

EPILOG = """exit codes: 0 every row written; 1 unexpected failure, or a gate of compare not met;
2 bad usage, configuration or input (nothing was computed); 3 numerical instability (committed rows
are kept); 130 Ctrl-C; 143 SIGTERM.
An interrupted command continues where it was when it is run again."""


class UsageCLI(LightningCLI):
    """LightningCLI that knows the shipped configs, and says what is wrong without a traceback."""

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the command line; the bare name of a shipped config is its path."""
        words = sys.argv[1:] if args is None else args
        if isinstance(words, list):
            words = with_shipped_configs(words)
        self.config = (
            parser.parse_args(words) if isinstance(words, list) else parser.parse_object(words)
        )

    def instantiate_classes(self) -> None:
        """Make Trainer, model, data and callbacks.

        Raises:
            UsageError: If any of them does not take what is configured.
        """
        try:
            super().instantiate_classes()
        except (MisconfigurationException, ValueError, TypeError) as error:
            raise UsageError(str(error)) from error


class PredictCLI(UsageCLI):
    """The subcommand `predict`: a writer beside model and data, and the precision rule."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Offer `predict` only; what its Trainer method takes is not for the command line."""
        skip = {"model", "dataloaders", "datamodule", "return_predictions", "ckpt_path"}
        return {"predict": skip | {"weights_only"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the writer, given by class_path as model and data are."""
        parser.add_subclass_arguments(BasePredictionWriter, "writer", required=True)
        parser.callback_keys.append("writer")

    def before_instantiate_classes(self) -> None:
        """Decide the precision by the rule, before Lightning logs and saves it.

        Raises:
            UsageError: If `VIRNUCPRO_DISABLE_FP16` holds a word that is neither on nor off.
        """
        config = self.config.predict
        allowed = should_use_fp16()
        given = config.trainer.precision
        asked = "32-true" if given is None else unify_precision(given)
        if given is not None and asked == "32-true" and "enable_fp16" in config.model.init_args:
            config.model.init_args.enable_fp16 = False  # more than Lightning's default
        config.trainer.precision = resolve_precision(
            asked,
            enable_fp16=_enable_fp16(config.model),
            fp16_allowed=allowed,
            accelerator=_device_type(config.trainer.accelerator),
        )
        _resolve_sample(config)

    def after_instantiate_classes(self) -> None:
        """Give the writer the resolved configuration for its file."""
        writer = self._get(self.config_init, "writer")
        writer.config = self._parser("predict").dump(self.config.predict, skip_none=False)

    def predict(self, **arguments: Any) -> None:
        """Run, without keeping predictions in RAM."""
        self.trainer.predict(**arguments, return_predictions=False)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command; the same for the console script, `python -m`, and tests.

    Args:
        args: Words of the command line; `sys.argv[1:]` by default.

    Raises:
        SystemExit: With the exit code, unless it is 0.
    """
    words = list(sys.argv[1:] if args is None else args)
    _log_to_stderr()
    announce_rank_0()
    watch_rank_0()
    signals = Signals()
    signals.install()
    try:
        if words in ([], ["-h"], ["--help"]):
            print_help()
            raise SystemExit(0 if words else 2)
        if words and words[0] in COMMANDS:
            name = words[0]
            function = getattr(import_module(f"virnucpro_pl.{name}"), name)
            if name == "fit":  # its options are Lightning's
                function(words)
            else:
                auto_cli(function, args=_with_underscores(words[1:]), prog=f"virnucpro-pl {name}")
        elif _wants_class_help(words):
            print_class_help(words)
        else:
            _predict(None if args is None else words)
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if lost_another_rank(error):
            log.error("Another rank is gone: %s", str(error).partition("\n")[0])
        elif code is None:  # nobody foresaw it: the traceback is wanted, and at once
            traceback.print_exc()
        elif not launched_by_rank_0():
            log.error("%s", error)
        outlive_rank_0()
        if isinstance(error, UnwritableError):
            sys.stderr.flush()
            os._exit(error.exit_code)
        raise SystemExit(1 if code is None else code) from error
    except SystemExit as end:
        if end.code:
            outlive_rank_0()
        raise
    finally:
        signals.restore()


def _predict(args: ArgsType) -> None:
    """Parse the command line and run it."""
    PredictCLI(
        LightningModule,
        LightningDataModule,
        args=args,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=None,
        seed_everything_default=False,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        trainer_defaults={
            "logger": False,
            "enable_checkpointing": False,
            "enable_model_summary": False,
        },
        parser_kwargs={
            "prog": "virnucpro-pl",
            "description": "Find viral sequences in sequencing data.",
            "epilog": EPILOG,
        },
    )


class _StandardError(logging.StreamHandler[Any]):
    """Writes to what is standard error at the time: while there is a bar, above it."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def _log_to_stderr() -> None:
    handler = _StandardError()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    log.handlers[:] = [handler]
    # Rank 0 speaks for all; what goes wrong on another rank is said by that one.
    log.setLevel(logging.WARNING if os.environ.get("LOCAL_RANK", "0") != "0" else logging.INFO)
    log.propagate = False
    # What Lightning says of itself is nothing that a user of this command can act on.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*")


def _with_underscores(words: list[str]) -> list[str]:
    """Let options be written with hyphens, as their keywords cannot be."""
    split = (word.partition("=") for word in words)
    return [
        "--" + flag[2:].replace("-", "_") + equals + value if flag[:2] == "--" else word
        for word, (flag, equals, value) in zip(words, split, strict=True)
    ]


def _enable_fp16(model: Namespace) -> bool:
    """Tell whether a configured model, and every model within it, wants FP16."""
    module, _, name = model.class_path.rpartition(".")
    if not getattr(getattr(import_module(module), name), "enable_fp16", True):
        return False
    options = vars(model.get("init_args", argparse.Namespace()))
    inner = [v for v in options.values() if isinstance(v, Namespace) and "class_path" in v]
    return bool(options.get("enable_fp16", True)) and all(map(_enable_fp16, inner))


def _device_type(accelerator: Any) -> str:
    import torch

    if accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available()):
        return "cuda"
    return "cpu" if accelerator in ("auto", "cpu") else str(accelerator)


def _resolve_sample(config: Namespace) -> None:
    """Find a data file that a shipped config names beside that config, from any folder."""
    path = config.data.init_args.get("path")
    beside = shipped_configs() / str(path)
    if path is not None and not Path(path).exists() and beside.is_file():
        config.data.init_args.path = str(beside)


def _wants_class_help(words: list[str]) -> bool:
    asks = "--help" in words or "-h" in words
    return asks and any(w.partition("=")[0] in ("-c", "--config") for w in words)


def print_help() -> None:
    """Print the commands, the shipped configs, each with its first line, and the exit codes."""
    commands = [f"  {name:<9} {use}" for name, use in COMMANDS.items()]
    configs = [
        f"  {path.name:<22} {path.read_text(encoding='utf-8').partition(chr(10))[0].lstrip('# ')}"
        for path in sorted(shipped_configs().glob("*.yaml"))
    ]
    text = HELP.format(commands="\n".join(commands), configs="\n".join(configs), epilog=EPILOG)
    sys.stdout.write(f"{text}\n")


def print_class_help(words: list[str]) -> None:
    """Print the options of the classes that the config on the command line names.

    Raises:
        UsageError: If there is no such config, or it names no such class.
    """
    resolved = with_shipped_configs(words)
    classes: dict[str, str] = {}
    for flag, value in zip(resolved, [*resolved[1:], ""], strict=True):
        head, equals, tail = flag.partition("=")
        if head in ("-c", "--config"):
            classes |= _classes_in(Path(tail if equals else value))
    parser = ArgumentParser(prog="virnucpro-pl predict", usage="%(prog)s --config NAME [options]")
    for key, path in classes.items():
        module, _, name = path.rpartition(".")
        try:
            parser.add_class_arguments(getattr(import_module(module), name), key)
        except (ImportError, AttributeError, ValueError) as error:
            raise UsageError(f"{key}: there is no class {path!r}: {error}") from error
    parser.print_help()


def _classes_in(path: Path) -> dict[str, str]:
    """Class paths of model, data and writer in a config file."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        given = {key: content.get(key) for key in ("model", "data", "writer")}
        return {key: str(value["class_path"]) for key, value in given.items() if value is not None}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        raise UsageError(f"{path} cannot be read as a config: {error!r}") from error
