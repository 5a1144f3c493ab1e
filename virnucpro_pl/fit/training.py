"""The LightningModule that trains a classifier, and the callback that keeps the best one."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryAUROC,
    BinaryAveragePrecision,
    BinaryF1Score,
    BinaryMatthewsCorrCoef,
    BinaryPrecision,
    BinaryRecall,
)

from virnucpro_pl.errors import UsageError, WeightsError
from virnucpro_pl.fit.labelled_datamodule import LabelledPairDataModule, labelled_data
from virnucpro_pl.fit.labelled_rows import LabelledBatch
from virnucpro_pl.models.classifier import CHUNK_LENGTH, EMBEDDERS, MLPClassifier, load_classifier
from virnucpro_pl.output.atomic_files import write_json
from virnucpro_pl.output.figures_file import holds
from virnucpro_pl.output.overwriting import refuse_inputs
from virnucpro_pl.stability import NumericalInstabilityError, are_finite

log = logging.getLogger(__name__)

_METRICS = {
    "accuracy": BinaryAccuracy,
    "precision": BinaryPrecision,
    "recall": BinaryRecall,
    "f1": BinaryF1Score,
    "mcc": BinaryMatthewsCorrCoef,
    "auroc": BinaryAUROC,
    "average_precision": BinaryAveragePrecision,
}
METRIC_NAMES = ("loss", *_METRICS)
"""What is measured of held-out ORFs."""
BEST = "best.ckpt"
METRICS = "metrics.json"


class ClassifierTraining(LightningModule):
    """Trains VirNucPro's classifier on embeddings, as its authors do (Li et al. 2025, train.py).

    Cross entropy, SGD with momentum, a learning rate that falls in steps; always FP32. Virus is the
    positive class of all metrics, and a tie of both scores is `others`.

    Attributes:
        classifier: The network, from `configure_model` on.
        history: The metrics of each epoch, in order.
    """

    classifier: MLPClassifier

    def __init__(
        self,
        learning_rate: float = 2e-4,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        step_size: int = 10,
        gamma: float = 0.85,
        hidden: int = 512,
        dropout: float = 0.5,
        class_weights: Literal["none", "balanced"] | tuple[float, float] = "none",
    ) -> None:
        """Configure the training; the defaults are the authors'.

        Args:
            learning_rate: Of SGD, in the first epochs.
            momentum: Of SGD.
            weight_decay: Of SGD; the authors use none.
            step_size: Epochs after which the learning rate is lowered, again and again.
            gamma: Factor by which it is lowered.
            hidden: Width of the hidden layer.
            dropout: Share of the hidden numbers that is left out in training.
            class_weights: Weights of others and virus in the loss, such as [1, 4]; `balanced` for
                weights by which both classes count the same; `none` as the authors do.
        """
        super().__init__()
        positive = {
            "learning_rate": learning_rate,
            "step_size": step_size,
            "gamma": gamma,
            "hidden": hidden,
        }
        for name, value in positive.items():
            if value <= 0:
                raise UsageError(f"--model.{name} must be above 0, not {value}")
        for name, value in {"momentum": momentum, "dropout": dropout}.items():
            if not 0 <= value < 1:
                raise UsageError(f"--model.{name} must be from 0 to below 1, not {value}")
        if not isinstance(class_weights, str) and min(class_weights) <= 0:
            raise UsageError(f"--model.class_weights must be above 0, not {list(class_weights)}")
        self.save_hyperparameters()
        self.options = dict(self.hparams)
        self.history: list[dict[str, float]] = []
        self.loss_weights: Tensor | None = None
        metrics = MetricCollection({name: metric() for name, metric in _METRICS.items()})
        self.val_metrics = metrics.clone(prefix="val_")
        self.test_metrics = metrics.clone(prefix="test_")

    def configure_model(self) -> None:
        """Make the network of the embeddings' width, its matrices drawn as the authors draw them.

        Raises:
            UsageError: If the data are no labelled embeddings.
        """
        if hasattr(self, "classifier"):
            return
        data = labelled_data(self.trainer)
        self.classifier = MLPClassifier(data.width, self.options["hidden"])
        self.classifier.dropout.p = self.options["dropout"]
        for layer in (self.classifier.hidden_layer, self.classifier.output_layer):
            nn.init.xavier_uniform_(layer.weight)
        weights = self.options["class_weights"]
        if weights == "balanced":
            counts = torch.bincount(torch.from_numpy(data.rows.labels[data.split.train]))
            weights = (counts.sum() / (2 * counts)).tolist()
        if weights != "none":
            self.loss_weights = torch.tensor(weights, dtype=torch.float32)
            log.info("Weights in the loss: others %.4g, virus %.4g", *weights)

    def configure_optimizers(self) -> Any:
        """SGD, and its learning rate lowered by steps."""
        optimizer = torch.optim.SGD(
            self.classifier.parameters(),
            lr=self.options["learning_rate"],
            momentum=self.options["momentum"],
            weight_decay=self.options["weight_decay"],
        )
        steps = torch.optim.lr_scheduler.StepLR(
            optimizer, self.options["step_size"], self.options["gamma"]
        )
        return [optimizer], [steps]

    def on_fit_start(self) -> None:
        """Keep TF32 from the classifier."""
        torch.set_float32_matmul_precision("highest")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep with the weights for which chunks and embeddings they are."""
        data = labelled_data(self.trainer)
        checkpoint[CHUNK_LENGTH] = data.chunk_length
        checkpoint[EMBEDDERS] = data.embedders

    def training_step(self, batch: LabelledBatch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        loss, _ = self._loss(batch)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch.labels))
        return loss

    def validation_step(self, batch: LabelledBatch, batch_idx: int) -> None:
        """Count one held-out batch."""
        self._evaluate(batch, "val", self.val_metrics)

    def test_step(self, batch: LabelledBatch, batch_idx: int) -> None:
        """Count one batch of the rows that nothing was chosen by."""
        self._evaluate(batch, "test", self.test_metrics)

    def _loss(self, batch: LabelledBatch) -> tuple[Tensor, Tensor]:
        """Mean loss, and logits (N, 2), in fp32 whatever autocast is on."""
        with torch.autocast(batch.features.device.type, enabled=False):
            logits = self.classifier(batch.features.float())
            weights = self.loss_weights
            weights = None if weights is None else weights.to(logits.device)
            return F.cross_entropy(logits, batch.labels, weights), logits

    def _evaluate(self, batch: LabelledBatch, part: str, metrics: MetricCollection) -> None:
        loss, logits = self._loss(batch)
        metrics.update(F.softmax(logits, dim=1)[:, 1], batch.labels)
        # Lightning cannot take the batch size from rows of two kinds.
        self.log(f"{part}_loss", loss, on_epoch=True, batch_size=len(batch.labels), prog_bar=True)

    def on_validation_epoch_start(self) -> None:
        """Stop before weights are kept that nobody can use.

        Raises:
            NumericalInstabilityError: If the weights are not finite.
        """
        if not are_finite(*self.classifier.state_dict().values()):
            raise NumericalInstabilityError(
                f"Numerical instability in epoch {self.current_epoch}: the classifier's weights "
                "are no longer finite. Lower --model.learning_rate "
                f"({self.options['learning_rate']})"
            )

    def on_validation_epoch_end(self) -> None:
        """Compute the metrics of the rows by which the best epoch is chosen."""
        self._log_metrics(self.val_metrics)

    def on_test_epoch_end(self) -> None:
        """Compute the metrics of the rows that nothing was chosen by."""
        self._log_metrics(self.test_metrics)

    def _log_metrics(self, metrics: MetricCollection) -> None:
        # torchmetrics may leave a number as an integer, such as a correlation of 1.
        self.log_dict({name: value.float() for name, value in metrics.compute().items()})
        metrics.reset()

    def on_train_epoch_end(self) -> None:
        """Tell how the epoch went."""
        metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        self.history.append({"epoch": self.current_epoch, **metrics})
        shown = [name for name in ("train_loss", "val_loss", "val_auroc") if name in metrics]
        line = ", ".join(f"{name} {metrics[name]:.4f}" for name in shown)
        log.info("Epoch %d: %s", self.current_epoch, line)


class ClassifierWriter(ModelCheckpoint):
    """Keeps the best epoch's classifier in a folder, and at the end its metrics beside it."""

    def __init__(
        self,
        path: str | Path = "classifier",
        overwrite: bool = False,
        monitor: str = "val_loss",
        mode: Literal["min", "max"] = "min",
    ) -> None:
        """Configure the output; nothing is touched yet.

        Args:
            path: Folder to write: `best.ckpt` and `metrics.json`.
            overwrite: Whether to replace what is there of both.
            monitor: Metric of the validation records by which the best epoch is chosen.
            mode: Whether it is to be small or large.
        """
        super().__init__(
            dirpath=Path(path).absolute(),  # in which Lightning takes no ~ for the home folder
            filename=Path(BEST).stem,
            monitor=monitor,
            mode=mode,
            save_top_k=1,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )
        self.path = Path(path)
        self.overwrite = overwrite

    def claim(self, inputs: Sequence[Path]) -> None:
        """Refuse a folder that holds a classifier, or that cannot be written.

        Args:
            inputs: Files that the training reads; none of them is ever written.

        Raises:
            UsageError: If so, or if a file that would be written is an input.
        """
        refuse_inputs((self.best, self.path / METRICS), inputs)
        there = [self.path / name for name in (BEST, METRICS) if (self.path / name).exists()]
        if there and not self.overwrite:
            raise UsageError(
                f"{there[0]} exists already: name another --writer.path, or give "
                "--writer.overwrite true"
            )
        for file in there:
            if not self._is_own(file):
                what = "classifier" if file == self.best else "file of metrics"
                raise UsageError(
                    f"{file} is not overwritten, since it is no {what} of this program: name "
                    "another --writer.path"
                )
        folders = (self.path, *self.path.absolute().parents)
        base = next(folder for folder in folders if folder.exists())
        if not base.is_dir() or not os.access(base, os.W_OK):
            raise UsageError(f"{self.path} cannot be written: give another --writer.path")

    def _is_own(self, file: Path) -> bool:
        if file != self.best:
            return holds(file, ("checkpoint", "held_out", "package_version"))
        try:
            load_classifier(self.source)
        except WeightsError:
            return False
        return True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Claim the folder before anything is computed."""
        if stage == "fit":
            data = getattr(trainer, "datamodule", None)
            self.claim(data.input_files if isinstance(data, LabelledPairDataModule) else [])
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove what is replaced: an interrupted run must not leave metrics of another one.

        Raises:
            UsageError: If the folder cannot be written after all.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for name in (BEST, METRICS):
                (self.path / name).unlink(missing_ok=True)
        except OSError as error:
            raise UsageError(f"{self.path} cannot be written: {error}") from error

    @property
    def best(self) -> Path:
        """The best epoch's checkpoint."""
        return self.path / BEST

    @property
    def source(self) -> str:
        """Its name for `--model.classifier`, where a `~` in front would be the home folder."""
        return str(self.best.absolute() if str(self.best).startswith("~") else self.best)

    def write_metrics(self, content: dict[str, Any]) -> Path:
        """Write the metrics beside the checkpoint."""
        write_json(self.path / METRICS, content)
        return self.path / METRICS
