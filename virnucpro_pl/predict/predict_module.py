"""What all modules that predict share: how a run begins, and where the weights stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from lightning.pytorch import Callback, LightningModule

from virnucpro_pl.contracts import RowModel
from virnucpro_pl.devices import announce, check_devices, set_threads
from virnucpro_pl.output.failures import FailureLog
from virnucpro_pl.precision import PrecisionFromEnv, run_precision


class PredictModule(LightningModule, RowModel):
    """A module that brings along what its run needs."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Give each sequence once for each row to a step that knows nothing of shared ones."""
        super().__init_subclass__(**options)
        if "predict_step" in vars(cls) and "spreads" not in vars(cls):
            cls.spreads = False

    def configure_callbacks(self) -> Sequence[Callback]:
        """Check the run's devices before its ranks meet, and bring callbacks along.

        Returns:
            The precision rule and the failure log, where the Trainer has none.

        Raises:
            UsageError: On every rank, if the run is on a wrong device, or has other ranks than
                devices.
        """
        trainer: Any = self.trainer
        check_devices(trainer)
        set_threads(trainer)
        announce(trainer, run_precision(trainer, self))
        needed: list[Callback] = [PrecisionFromEnv(), FailureLog()]
        present = {type(callback) for callback in trainer.callbacks}
        return [c for c in needed if not any(issubclass(kind, type(c)) for kind in present)]

    def cpu(self) -> Self:
        """Stay where the weights are.

        Lightning would copy them to the host before the output is published, and billions of
        parameters take seconds.
        """
        return self
