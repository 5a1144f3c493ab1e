"""The callback that keeps a training's state, and publishes the best epoch's classifier."""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from virnucpro_pl.errors import OutputError, UsageError, WeightsError, listed
from virnucpro_pl.fit.labelled_datamodule import LabelledPairDataModule, labelled_data
from virnucpro_pl.fit.report import CALIBRATION_TABLE, METRICS_FILE, THRESHOLDS_TABLE, FitReport
from virnucpro_pl.fit.training import ClassifierTraining
from virnucpro_pl.models.checkpoint import read_torch_file
from virnucpro_pl.models.classifier import load_classifier, save_classifier
from virnucpro_pl.output.atomic_files import publish_folder, published, restore_folder
from virnucpro_pl.output.figures_file import holds
from virnucpro_pl.output.locks import Locks
from virnucpro_pl.output.manifest import Manifest
from virnucpro_pl.output.overwriting import is_taken, refuse_inputs
from virnucpro_pl.version import __version__

log = logging.getLogger(__name__)

BEST = "best.ckpt"
_TRAINER_OPTIONS = (
    *("precision", "check_val_every_n_epoch", "limit_train_batches", "accumulate_grad_batches"),
    *("gradient_clip_val", "gradient_clip_algorithm"),
)
_STOPPING_OPTIONS = ("monitor", "mode", "patience", "min_delta")
"""Options on which the weights depend beside those of model and data."""
_OURS = {BEST, METRICS_FILE, CALIBRATION_TABLE, THRESHOLDS_TABLE}


class ClassifierWriter(Checkpoint):
    """Writes a folder with the best epoch's classifier, calibrated, and how good it is.

    Until the training ends, `<path>.parts/state.ckpt` holds all that the last whole epoch has left,
    the best epoch's weights among it: one file, replaced at once, so that the same command goes on
    from there whatever ends the training.

    Attributes:
        report: What is measured of the best epoch, once the folder is there.
    """

    def __init__(
        self,
        path: str | Path = "classifier",
        overwrite: bool = False,
        monitor: str = "val_loss",
        mode: Literal["min", "max"] = "min",
    ) -> None:
        """Configure the output; nothing is touched yet.

        Args:
            path: Folder to write: `best.ckpt`, `metrics.json`, `calibration.tsv`, `thresholds.tsv`.
            overwrite: Whether to replace such a folder, and start an interrupted training over.
            monitor: Metric of the validation records by which the best epoch is chosen.
            mode: Whether it is to be small or large.
        """
        super().__init__()
        self.path = Path(path)
        if self.path.name in ("", ".."):
            raise UsageError(f"--writer.path {path} has no name: name a folder, such as classifier")
        self.overwrite = overwrite
        self.monitor = monitor
        self.mode = mode
        self.config = ""
        self.report: FitReport | None = None
        self._parts = self.path.with_name(f"{self.path.name}.parts")
        self._replaced = self._parts / "replaced"
        self._locks = Locks(self._parts, self.path)
        self._forget()

    def _forget(self) -> None:
        """Be as new, for another training."""
        self._manifest = Manifest(self._parts)
        self._best: dict[str, Any] = {}
        self._is_over = self._is_claimed = self._trains = False

    @property
    def state_file(self) -> Path:
        """State after the last whole epoch, from which a training goes on."""
        return self._parts / "state.ckpt"

    @property
    def best(self) -> Path:
        """The best epoch's checkpoint, once the training is over."""
        return self.path / BEST

    @property
    def source(self) -> str:
        """Its name for `--model.classifier`, where a `~` in front would be the home folder."""
        return str(self.best.absolute() if str(self.best).startswith("~") else self.best)

    # Before the training ----------------------------------------------------------------------

    def check_output(self, inputs: Sequence[Path]) -> None:
        """Refuse a folder that holds a classifier, or that cannot be written.

        Args:
            inputs: Files that the training reads; none of them is ever written.

        Raises:
            UsageError: If so, or if a file that would be written is an input.
        """
        ours = [self.path / name for name in _OURS]
        refuse_inputs((self.path, self._parts, *ours), inputs)
        if self.path.exists() and self.path.samefile("."):
            raise UsageError(f"{self.path} is the current folder: name another --writer.path")
        if is_taken(self.path):
            if not self.path.is_dir():
                raise UsageError(f"{self.path} cannot be written: it is a file")
            there = sorted(file.name for file in self.path.iterdir())
            if others := [name for name in there if name not in _OURS]:
                raise UsageError(
                    f"{self.path} holds more than a classifier: {listed(others)}. Name another "
                    "--writer.path"
                )
            if not self.overwrite:
                raise UsageError(
                    f"{self.path / there[0]} exists already: name another --writer.path, or give "
                    "--writer.overwrite true"
                )
            self._check_own()
        folders = (self.path, *self.path.absolute().parents)
        base = next(folder for folder in folders if folder.exists())
        if not base.is_dir() or not os.access(base, os.W_OK):
            raise UsageError(f"{self.path} cannot be written: give another --writer.path")

    def _check_own(self) -> None:
        """Refuse to replace files of other programs that have the same names."""
        metrics = self.path / METRICS_FILE
        if metrics.exists() and not holds(metrics, ("checkpoint", "held_out", "package_version")):
            what, file = "file of metrics", metrics
        elif self.best.exists() and not _is_classifier(self.source):
            what, file = "classifier", self.best
        else:
            return
        raise UsageError(
            f"{file} is not overwritten, since it is no {what} of this program: name another "
            "--writer.path"
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Claim the folder before anything is computed.

        Raises:
            UsageError: If it cannot be written, or another training is writing it, or one of other
                data or options was interrupted there.
        """
        if stage != "fit":
            return
        data = getattr(trainer, "datamodule", None)
        inputs = data.input_files if isinstance(data, LabelledPairDataModule) else []
        self._forget()
        self.check_output(inputs)
        try:
            self._parts.mkdir(parents=True, exist_ok=True)
            self._locks.take(rank=0)
            self._is_claimed = True
            restore_folder(self.path, self._replaced)
            self.check_output(inputs)  # what is put back, too
            if self._replaced.exists():  # a kill has kept it from being removed
                shutil.rmtree(self._replaced)
            if self.overwrite:
                self.state_file.unlink(missing_ok=True)
            self._check_same_training(trainer, labelled_data(trainer), _model(pl_module))
        except OSError as error:
            raise UsageError(f"{self.path} cannot be written: {error}") from error

    def _check_same_training(
        self, trainer: Trainer, data: LabelledPairDataModule, model: ClassifierTraining
    ) -> None:
        """Go on with the same training only, and write down which one this is.

        Raises:
            UsageError: If the interrupted one was of other data or options, or its state is lost.
        """
        now = {
            **data.identity(),
            **model.options,
            "seed": data.seed,
            "package_version": __version__,
        }
        now |= {"monitor": self.monitor, "mode": self.mode}
        now |= {name: getattr(trainer, name) for name in _TRAINER_OPTIONS}
        for stopping in trainer.early_stopping_callbacks:
            now |= {f"early_stopping.{name}": getattr(stopping, name) for name in _STOPPING_OPTIONS}
        if not self.state_file.exists():
            self._manifest.write(lambda: now)
            return
        if not self._manifest.path.exists():
            raise UsageError(
                f"{self.state_file} is of an unknown training: start over with --writer.overwrite "
                "true"
            )
        self._manifest.check_same_run(self._manifest.read(), now)
        try:
            read_torch_file(self.state_file, checksums=True)
        except WeightsError as error:
            raise UsageError(f"{error}: start over with --writer.overwrite true") from error

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what is done already.

        Raises:
            UsageError: If more is done than is asked for.
        """
        done = len(_model(pl_module).history)
        if 0 <= (trainer.max_epochs or -1) < done:
            raise UsageError(
                f"{self.state_file} has {done} epochs, more than --trainer.max_epochs "
                f"{trainer.max_epochs}: give as many, or start over with --writer.overwrite true"
            )
        if done:
            log.info("Continuing: %d epochs are done already", done)
        elif self.state_file.exists():
            log.info("Starting over: the Trainer was not given the state in %s", self.state_file)
        self._trains = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Train no further where the last epoch was the last one."""
        trainer.should_stop = self._is_over

    # While it trains --------------------------------------------------------------------------

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the weights if they are the best so far, and the state in any case."""
        model = _model(pl_module)
        value = model.history[-1].get(self.monitor, math.nan)
        if self._is_better(value):
            self._best = {
                "epoch": trainer.current_epoch,
                "value": value,
                "weights": {k: v.cpu().clone() for k, v in model.classifier.state_dict().items()},
            }
        self._is_over = trainer.should_stop
        try:
            with published(self.state_file) as temporary:
                trainer.save_checkpoint(temporary.absolute())  # Lightning has a ~ of its own
        except OSError as error:
            raise OutputError(f"{self.state_file} cannot be written: {error}") from error

    def _is_better(self, value: float) -> bool:
        if math.isnan(value) or not self._best:
            return not math.isnan(value)
        before = float(self._best["value"])
        return value < before if self.mode == "min" else value > before

    def state_dict(self) -> dict[str, Any]:
        """What a continued training needs."""
        return {"best": self._best, "is_over": self._is_over}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._best, self._is_over = state_dict["best"], state_dict["is_over"]

    # Afterwards -------------------------------------------------------------------------------

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure and calibrate the best epoch, and publish the folder.

        Raises:
            UsageError: If no epoch was validated.
            OutputError: If the folder cannot be written.
        """
        if not self._best:
            self.state_file.unlink(missing_ok=True)
            raise UsageError(
                "No checkpoint was kept: the training needs at least one whole epoch with its "
                "validation (see --trainer.max_epochs and --trainer.check_val_every_n_epoch)"
            )
        data, model = labelled_data(trainer), _model(pl_module)
        model.classifier.load_state_dict(self._best["weights"])
        model.classifier.eval()
        self.report = FitReport.measure(model, data, self._best["epoch"])
        folder = self._parts / "output"
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            save_classifier(
                folder / BEST,
                self._best["weights"],
                calibration=self.report.calibration,
                chunk_length=data.chunk_length,
                embedders=data.embedders,
                options=model.options,
                epoch=self._best["epoch"],
            )
            self.report.write(folder, checkpoint=self.best, config=self.config)
            publish_folder(folder, self.path, self._replaced, overwrite=self.overwrite)
            shutil.rmtree(self._parts)
        except OSError as error:
            raise OutputError(
                f"{self.path} cannot be written: {error}. Make room and run the same command again"
            ) from error
        finally:
            self._locks.release()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the state behind, and say so; leave no folder without one."""
        if not self._is_claimed:
            return
        if not self.state_file.exists():
            shutil.rmtree(self._parts, ignore_errors=True)
        elif self._trains:
            command = "the same command"
            if self.overwrite:
                command += " with --writer.overwrite false"
                command += f", with {self.path} moved away," if is_taken(self.path) else ""
            log.warning(
                "Stopped: the state after the last whole epoch is kept in %s; %s goes on from "
                "there",
                *(self._parts, command),
            )
        self._locks.release()


def _is_classifier(source: str) -> bool:
    try:
        load_classifier(source)
    except WeightsError:
        return False
    return True


def _model(pl_module: LightningModule) -> ClassifierTraining:
    """The training itself.

    Raises:
        UsageError: If the module is another.
    """
    if not isinstance(pl_module, ClassifierTraining):
        raise UsageError(
            f"ClassifierWriter is for a ClassifierTraining, not for {type(pl_module).__name__}"
        )
    return pl_module
