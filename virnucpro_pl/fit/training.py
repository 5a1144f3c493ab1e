"""The LightningModule that trains a classifier."""

from __future__ import annotations

import logging
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule
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

from virnucpro_pl.devices import announce, give_back_threads, set_threads
from virnucpro_pl.errors import UsageError
from virnucpro_pl.fit.labelled_datamodule import labelled_data
from virnucpro_pl.fit.labelled_rows import LabelledBatch
from virnucpro_pl.models.classifier import MLPClassifier
from virnucpro_pl.stability import NumericalInstabilityError, are_finite

log = logging.getLogger(__name__)

METRICS = {
    "accuracy": BinaryAccuracy,
    "precision": BinaryPrecision,
    "recall": BinaryRecall,
    "f1": BinaryF1Score,
    "mcc": BinaryMatthewsCorrCoef,
    "auroc": BinaryAUROC,
    "average_precision": BinaryAveragePrecision,
}
METRIC_NAMES = ("loss", *METRICS)
"""What is measured of held-out ORFs."""
_ROWS = 64
"""Rows of a step for each thread: a second one is slower with 32 and with 64, faster with 256."""
_HISTORY = "history"
"""Under which name the state of a training keeps the metrics of its epochs."""


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
        self._is_validated = False
        self.val_metrics = MetricCollection(
            {name: metric() for name, metric in METRICS.items()}, prefix="val_"
        )

    def configure_callbacks(self) -> list[Callback]:
        """Begin the run: as many threads as there is work for in a step.

        Raises:
            UsageError: If the data are no labelled embeddings.
        """
        set_threads(self.trainer, labelled_data(self.trainer).batch_size // _ROWS)
        announce(self.trainer, str(self.trainer.precision))
        return []

    def teardown(self, stage: str) -> None:
        """Leave the process as many threads as it had."""
        give_back_threads()

    def configure_model(self) -> None:
        """Make the network of the embeddings' width, its matrices drawn as the authors draw them.

        Raises:
            UsageError: If the data are no labelled embeddings.
        """
        if hasattr(self, "classifier"):
            return
        data = labelled_data(self.trainer)
        with torch.random.fork_rng(devices=[]):  # whatever has drawn numbers before
            torch.manual_seed(data.seed)
            self.classifier = MLPClassifier(data.width, self.options["hidden"])
            for layer in (self.classifier.hidden_layer, self.classifier.output_layer):
                nn.init.xavier_uniform_(layer.weight)
        self.classifier.dropout.p = self.options["dropout"]
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
        """Keep the metrics of all epochs with the state."""
        checkpoint[_HISTORY] = self.history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the metrics of the epochs that are done."""
        self.history = list(checkpoint[_HISTORY])

    def training_step(self, batch: LabelledBatch, batch_idx: int) -> Tensor:
        """Loss of one batch; what is dropped out depends on seed and epoch alone."""
        if batch_idx == 0:  # not in a hook: where a training goes on, the first epoch's is left out
            seed = np.random.SeedSequence((labelled_data(self.trainer).seed, self.current_epoch))
            torch.manual_seed(int(seed.generate_state(1, np.uint64)[0]))
        loss, _ = self._loss(batch)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch.labels))
        return loss

    def validation_step(self, batch: LabelledBatch, batch_idx: int) -> None:
        """Count one held-out batch."""
        loss, logits = self._loss(batch)
        self.val_metrics.update(F.softmax(logits, dim=1)[:, 1], batch.labels)
        # Lightning cannot take the batch size from rows of two kinds.
        self.log("val_loss", loss, on_epoch=True, batch_size=len(batch.labels), prog_bar=True)

    def _loss(self, batch: LabelledBatch) -> tuple[Tensor, Tensor]:
        """Mean loss, and logits (N, 2), in fp32 whatever autocast is on."""
        with torch.autocast(batch.features.device.type, enabled=False):
            logits = self.classifier(batch.features.float())
            weights = self.loss_weights
            weights = None if weights is None else weights.to(logits.device)
            return F.cross_entropy(logits, batch.labels, weights), logits

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
        # torchmetrics may leave a number as an integer, such as a correlation of 1.
        metrics = self.val_metrics.compute()
        self.log_dict({name: value.float() for name, value in metrics.items()})
        self.val_metrics.reset()
        self._is_validated = True

    def on_train_epoch_end(self) -> None:
        """Tell how the epoch went."""
        metrics = {
            name: float(value)
            for name, value in self.trainer.callback_metrics.items()
            if self._is_validated or not name.startswith("val_")  # else of an earlier epoch
        }
        self._is_validated = False
        self.history.append({"epoch": self.current_epoch, **metrics})
        shown = [name for name in ("train_loss", "val_loss", "val_auroc") if name in metrics]
        line = ", ".join(f"{name} {metrics[name]:.4f}" for name in shown)
        log.info("Epoch %d: %s", self.current_epoch, line)
