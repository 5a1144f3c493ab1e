"""`virnucpro-pl predict`: a model, its data and a writer, all of them named by a config."""

from __future__ import annotations

from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.cli import LightningArgumentParser

from virnucpro_pl import devices
from virnucpro_pl.cli.shipped import DEMO, shipped_configs
from virnucpro_pl.cli.usage import UsageCLI
from virnucpro_pl.errors import OutputError
from virnucpro_pl.precision import resolve_precision, should_use_fp16, unify_precision


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


def predict(words: list[str], command: type[PredictCLI] = PredictCLI) -> PredictCLI:
    """Run a model over its data.

    Args:
        words: The command line from `predict` on.
        command: Reads and runs it.
    """
    return command(
        LightningModule,
        LightningDataModule,
        words,
        {"enable_checkpointing": False},
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=False,
    )


def _enable_fp16(model: Namespace) -> bool:
    """Tell whether a configured model, and every model within it, wants FP16."""
    # A class that never computes in FP16 says so itself; for any other it is an option, if at all.
    if not getattr(resolve_name(model.class_path), "enable_fp16", True):
        return False
    options = vars(model.init_args) if "init_args" in model else {}
    inner = [v for v in options.values() if isinstance(v, Namespace) and "class_path" in v]
    return bool(options.get("enable_fp16", True)) and all(map(_enable_fp16, inner))


def _resolve_sample(config: Namespace) -> None:
    """Find bundled samples beside the shipped config that runs on samples, from any folder."""
    demo, paths = shipped_configs() / DEMO, config.data.init_args.get("path")
    if paths and any(Path(str(given)).samefile(demo) for given in config.config or ()):
        several = isinstance(paths, list)
        config.data.init_args.path = [*map(_beside, paths)] if several else _beside(paths)


def _beside(path: str | Path) -> str | Path:
    """A sample, unless there is a file of that name in the working folder."""
    sample = shipped_configs() / path
    return str(sample) if sample.is_file() and not Path(path).exists() else path
