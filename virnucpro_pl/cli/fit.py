"""`virnucpro-pl fit`: train a classifier on two sets of embedding files."""

from __future__ import annotations

import logging
import shlex
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.cli import LightningArgumentParser

from virnucpro_pl.cli.usage import UsageCLI
from virnucpro_pl.devices import check_devices
from virnucpro_pl.errors import UsageError
from virnucpro_pl.fit.classifier_writer import ClassifierWriter
from virnucpro_pl.fit.labelled_datamodule import LabelledPairDataModule
from virnucpro_pl.fit.training import METRIC_NAMES, ClassifierTraining
from virnucpro_pl.models.esm2 import DEFAULT, SIZES

log = logging.getLogger(__name__)

SEED = 42
"""The authors' (train.py)."""
SMALLER = "esm2_t33_650M_UR50D"
"""The ESM-2 that has a config of its own."""


class FitCLI(UsageCLI):
    """The subcommand `fit`: the writer and early stopping beside model and data."""

    help_command = "virnucpro-pl fit --help-all"

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Offer `fit` only; what its Trainer method takes is not for the command line."""
        skip = {"model", "train_dataloaders", "val_dataloaders", "datamodule", "ckpt_path"}
        return {"fit": skip | {"weights_only"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the writer and early stopping."""
        parser.add_lightning_class_args(ClassifierWriter, "writer")
        parser.add_lightning_class_args(EarlyStopping, "early_stopping")
        parser.set_defaults({"early_stopping.monitor": "val_loss", "early_stopping.patience": 5})

    def before_fit(self) -> None:
        """Refuse an output that cannot be written before anything is read.

        Raises:
            UsageError: If so, if more than one process would train or was started, or if the best
                epoch could not be told.
        """
        processes = self.trainer.num_devices * self.trainer.num_nodes
        if processes > 1:
            raise UsageError(
                f"A classifier is trained by one process: give --trainer.devices 1, not {processes}"
            )
        check_devices(self.trainer)
        # Whatever it is: whether 1 is read as one batch or as all of them depends on what other
        # packages have imported by then.
        asked = self.config.fit.trainer
        if asked.limit_val_batches is not None or asked.fast_dev_run:
            raise UsageError(
                "The best epoch cannot be told without the whole validation: leave out "
                "--trainer.limit_val_batches and --trainer.fast_dev_run"
            )
        known = [f"val_{name}" for name in METRIC_NAMES]
        stopping = self._get(self.config_init, "early_stopping")
        for option, monitor in (("writer", self._writer), ("early_stopping", stopping)):
            if monitor.monitor not in known:
                raise UsageError(
                    f"--{option}.monitor must be one of {', '.join(known)}, not {monitor.monitor}"
                )
        _quiet()
        self._writer.check_output(self.datamodule.input_files)

    def after_instantiate_classes(self) -> None:
        """Give the writer the resolved configuration for its metrics."""
        self._writer.config = self._parser("fit").dump(self.config.fit, skip_none=False)

    def fit(self, **arguments: Any) -> None:
        """Train, from the last whole epoch on where the same training was interrupted."""
        state = self._writer.state_file
        resumes = state.is_file() and not self._writer.overwrite
        self.trainer.fit(**arguments, ckpt_path=state if resumes else None, weights_only=True)

    def after_fit(self) -> None:
        """Say where the classifier is, and how good."""
        writer, data = self._writer, self.datamodule
        report = writer.report
        assert report is not None, "the training has ended, so that its writer has measured"
        data.close()
        epochs, metrics = report.content["epochs"], report.orfs[report.part]
        log.info(
            "Wrote %s (epoch %d; the last was %d) and what is measured of it. On the held-out %s "
            "records: %s. Use it with: virnucpro-pl predict --config %s --model.classifier %s%s",
            writer.best,
            report.content["epoch"],
            epochs[-1]["epoch"],
            report.part,
            ", ".join(f"{name} {metrics[name]:.4f}" for name in METRIC_NAMES),
            _config_of(data.embedders["esm2"].get("model", "")),
            shlex.quote(writer.source),
            f" --data.length {data.chunk_length}" if data.chunk_length else "",
        )
        log.info(
            "Look at it with: virnucpro-pl plot %s", shlex.quote(str(Path(writer.source).parent))
        )

    @property
    def _writer(self) -> ClassifierWriter:
        writer: ClassifierWriter = self._get(self.config_init, "writer")
        return writer


def fit(words: list[str]) -> None:
    """Train a classifier.

    Args:
        words: The command line from `fit` on.
    """
    FitCLI(
        ClassifierTraining,
        LabelledPairDataModule,
        words,
        {"devices": 1, "max_epochs": 200, "deterministic": True, "num_sanity_val_steps": 0},
        seed_everything_default=SEED,
    )


def _config_of(esm2: str) -> str:
    """The config that calls with an ESM-2, and the option beside it where one is needed."""
    if esm2 == SMALLER:
        return "virnucpro_650m.yaml"
    named = esm2 in SIZES and esm2 != DEFAULT
    return "virnucpro.yaml" + (f" --model.esm2.name {esm2}" if named else "")


def _quiet() -> None:
    """Keep from the log what Lightning advises on loaders that are small on purpose."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
