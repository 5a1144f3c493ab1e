"""The command `virnucpro-pl`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from jsonargparse import ArgumentError, Namespace, auto_parser
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from virnucpro_pl import devices
from virnucpro_pl.cli.help import (
    COMMANDS,
    EPILOG,
    print_class_help,
    print_help,
    wants_class_help,
)
from virnucpro_pl.cli.literal_paths import LiteralPathParser, read_paths, spell_paths
from virnucpro_pl.cli.mistakes import (
    check_configs,
    check_devices_option,
    check_values,
    describe_failure,
    explain,
    usage_error_in,
)
from virnucpro_pl.cli.shipped import DEMO, config_names, shipped_configs, with_shipped_configs
from virnucpro_pl.errors import OutputError, UnwritableError, UsageError
from virnucpro_pl.output.processes import (
    announce_rank_0,
    launched_by_rank_0,
    lost_another_rank,
    outlive_rank_0,
    watch_rank_0,
)
from virnucpro_pl.output.signals import Signals
from virnucpro_pl.precision import resolve_precision, should_use_fp16, unify_precision

log = logging.getLogger("virnucpro_pl")

COMMAND_MODULES = {
    "bench": "virnucpro_pl.bench",
    "compare": "virnucpro_pl.compare.command",
    "export": "virnucpro_pl.embeddings.export",
    "fit": "virnucpro_pl.cli.fit",
    "plot": "virnucpro_pl.plot.command",
}
"""Where each command but `predict` is, a function of its name."""


class UsageCLI(LightningCLI):
    """LightningCLI that knows the shipped configs, and says what is wrong without a traceback."""

    help_command: ClassVar[str]
    """Lists the options."""

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the command line; the bare name of a shipped config is its path.

        Raises:
            UsageError: In one sentence, if an option is unknown, missing, or of a wrong kind.
        """
        given = sys.argv[1:] if args is None else args
        assert isinstance(given, list), "only words are ever parsed"
        words = with_shipped_configs(given)
        configs, command = config_names(words), words[0]
        check_values(words)
        if not {"-h", "--help"} & set(words):
            check_configs(command, configs, words)
        try:
            self.config = read_paths(parser.parse_args(spell_paths(words)))
        except ArgumentError as error:
            options = self._subcommand_parsers[command]._option_string_actions
            said = explain(read_paths(str(error)), words, options, configs)
            raise UsageError(f"{said} (options are listed by {self.help_command})") from error
        check_devices_option(self.config[command].trainer.devices)

    def before_instantiate_classes(self) -> None:
        """Decide the device, so that the configuration says what runs.

        Raises:
            UsageError: If it is neither the CPU nor an NVIDIA GPU.
        """
        trainer = self.config[self.subcommand].trainer
        trainer.accelerator = devices.resolve_accelerator(trainer.accelerator)

    def instantiate_classes(self) -> None:
        """Make Trainer, model, data and callbacks.

        Raises:
            UsageError: If any of them does not take what is configured.
        """
        devices.check_slurm_tasks()
        try:
            super().instantiate_classes()
        except (MisconfigurationException, ValueError, TypeError) as error:
            raise usage_error_in(error) or UsageError(describe_failure(error)) from error


class PredictCLI(UsageCLI):
    """The subcommand `predict`: a writer beside model and data, and the precision rule."""

    help_command = "virnucpro-pl predict --config NAME --help"

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
        """Decide device and precision by their rules, before Lightning logs and saves them.

        Raises:
            UsageError: If there is no such device, or `VIRNUCPRO_DISABLE_FP16` holds a word that is
                neither on nor off.
        """
        super().before_instantiate_classes()
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
            accelerator=config.trainer.accelerator,
            bf16_units=devices.has_bf16_units(),
        )
        _resolve_sample(config)

    def after_instantiate_classes(self) -> None:
        """Give the writer the resolved configuration for its file."""
        writer = self._get(self.config_init, "writer")
        writer.config = self._parser("predict").dump(self.config.predict, skip_none=False)

    def predict(self, **arguments: Any) -> None:
        """Run, without keeping predictions in RAM.

        Raises:
            UsageError: If not one process was started for each device.
            OutputError: If something within the run wants the program to exit as if all were well.
        """
        devices.check_devices(self.trainer)  # before Lightning's launcher finds fault
        try:
            self.trainer.predict(**arguments, return_predictions=False)
        except SystemExit as end:
            if end.code:
                raise
            raise OutputError("Something has called sys.exit() before every row was there") from end


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
        name = words[0]
        if name.startswith("-"):
            raise UsageError(f"The command comes first: virnucpro-pl predict {name} ...")
        if name not in ("predict", *COMMANDS):
            known = ", ".join(["predict", *COMMANDS])
            raise UsageError(f"There is no command {name!r}; there are {known}")
        if name in COMMANDS:
            function = getattr(import_module(COMMAND_MODULES[name]), name)
            if name == "fit":  # its options are Lightning's
                function(words)
            else:
                _call(function, words)
        elif wants_class_help(words):
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
        if code is not None or lost_another_rank(error):  # a traceback ends with them
            for note in getattr(error, "__notes__", ()):
                log.warning("%s", note)
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
            "exit_on_error": False,
            "allow_abbrev": False,
        },
        parser_class=LiteralPathParser,
    )


def _call(function: Callable[..., None], words: list[str]) -> None:
    """Call the function of a command with its options, which may be written with hyphens.

    Raises:
        UsageError: In one sentence, if an option is unknown, missing, or of a wrong kind.
    """
    prog, options = f"virnucpro-pl {words[0]}", _with_underscores(words[1:])
    check_values(words)
    if config_names(words):
        raise UsageError(f"{prog} takes no config: its options are listed by {prog} --help")
    parser = auto_parser(function, prog=prog, exit_on_error=False, allow_abbrev=False)
    try:
        config = read_paths(parser.parse_args(spell_paths(options, positional=True)))
    except ArgumentError as error:
        said = explain(read_paths(str(error)), options, parser._option_string_actions)
        for option, word in zip(options, words[1:], strict=True):  # as it was typed
            said = said.replace(option.partition("=")[0], word.partition("=")[0])
        raise UsageError(f"{said} (options are listed by {prog} --help)") from error
    arguments = vars(parser.instantiate(config))
    arguments.pop("config", None)
    function(**arguments)


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
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
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


def _resolve_sample(config: Namespace) -> None:
    """Find a bundled sample beside the shipped config that runs on samples, from any folder."""
    path = config.data.init_args.get("path")
    beside = shipped_configs() / str(path)
    trial = any(
        Path(str(given)).samefile(shipped_configs() / DEMO) for given in config.config or ()
    )
    if trial and path is not None and not Path(path).exists() and beside.is_file():
        config.data.init_args.path = str(beside)
