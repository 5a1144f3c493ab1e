"""The command `virnucpro-pl`."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from virnucpro_pl.output.ranks import launched_by_rank_0, outlive_rank_0
from virnucpro_pl.precision import resolve_precision, should_use_fp16, unify_precision
from virnucpro_pl.shipped import find_config, shipped_configs

__all__ = ["main"]

log = logging.getLogger("virnucpro_pl")

EPILOG = """exit codes: 0 every row written; 1 unexpected failure; 2 bad usage, configuration or input
(nothing was computed); 3 numerical instability (committed rows are kept); 130 Ctrl-C; 143 SIGTERM.
An interrupted command continues where it was when it is run again."""


class PredictCLI(LightningCLI):
    """LightningCLI with one subcommand, a writer beside model and data, and the precision rule."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Offer `predict` only; what its Trainer method takes is not for the command line."""
        skip = {"model", "dataloaders", "datamodule", "return_predictions", "ckpt_path"}
        return {"predict": skip | {"weights_only"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the writer, given by class_path as model and data are."""
        parser.add_subclass_arguments(BasePredictionWriter, "writer", required=True)
        parser.callback_keys.append("writer")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the command line; the bare name of a shipped config is its path."""
        words = sys.argv[1:] if args is None else args
        if isinstance(words, list):
            words = _with_shipped_configs(words)
        self.config = (
            parser.parse_args(words) if isinstance(words, list) else parser.parse_object(words)
        )

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
    if _wants_class_help(words):
        print_class_help(words)
        return
    quiet = launched_by_rank_0()
    try:
        PredictCLI(
            LightningModule,
            LightningDataModule,
            args=list(args) if args is not None else None,
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
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if code is None:
            if quiet:
                outlive_rank_0()
            raise
        if not quiet:
            log.error("%s", error)
        outlive_rank_0()
        raise SystemExit(code) from error
    except KeyboardInterrupt as interrupt:
        raise SystemExit(130) from interrupt
    except SystemExit as end:
        if end.code:
            outlive_rank_0()
        raise


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    log.handlers[:] = [handler]
    # Rank 0 speaks for all; what goes wrong on another rank is said by that one.
    log.setLevel(logging.WARNING if os.environ.get("LOCAL_RANK", "0") != "0" else logging.INFO)
    log.propagate = False
    # What Lightning says of itself is nothing that a user of this command can act on.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*")


def _with_shipped_configs(words: list[str]) -> list[str]:
    resolved = list(words)
    for i, word in enumerate(words):
        flag, equals, name = word.partition("=")
        if flag not in ("-c", "--config"):
            continue
        if equals:
            resolved[i] = f"{flag}={find_config(name)}"
        elif i + 1 < len(words):
            resolved[i + 1] = find_config(words[i + 1])
    return resolved


def _enable_fp16(model: Namespace) -> bool:
    """Tell whether a configured model, and every model within it, wants FP16."""
    module, _, name = model.class_path.rpartition(".")
    if not getattr(getattr(import_module(module), name), "enable_fp16", True):
        return False
    options = model.get("init_args", Namespace())
    inner = [v for v in vars(options).values() if isinstance(v, Namespace) and "class_path" in v]
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


def print_class_help(words: list[str]) -> None:
    """Print the options of the classes that the config on the command line names."""
    config: dict[str, Any] = {}
    resolved = _with_shipped_configs(words)
    for flag, value in zip(resolved, [*resolved[1:], ""], strict=True):
        head, equals, tail = flag.partition("=")
        if head in ("-c", "--config"):
            content = yaml.safe_load(Path(tail if equals else value).read_text(encoding="utf-8"))
            config.update(content)
    parser = ArgumentParser(prog="virnucpro-pl predict", usage="%(prog)s --config NAME [options]")
    for key in ("model", "data", "writer"):
        if key in config:
            module, _, name = config[key]["class_path"].rpartition(".")
            parser.add_class_arguments(getattr(import_module(module), name), key)
    parser.print_help()
