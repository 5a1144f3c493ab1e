"""Which sequences failed, on which rank and why: a log line and one JSON object per failure."""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from virnucpro_pl.contracts import FailureRecord
from virnucpro_pl.errors import (
    MAX_LISTED,
    PeerError,
    UsageError,
    WorkerError,
    is_out_of_memory,
    listed,
)
from virnucpro_pl.output.processes import lost_another_rank
from virnucpro_pl.stability import NumericalInstabilityError

log = logging.getLogger(__name__)


def failures_file(output: Path) -> Path:
    """Name of the failure log that belongs to an output file or folder."""
    return output.with_name(f"{output.name}.failures.jsonl")


_OF_NO_SEQUENCE = (PeerError, UsageError, WorkerError)
"""Errors that say nothing of the sequences that are computed."""


class FailureLog(Callback, FailureRecord):
    """Writes the ids of failing sequences to the log and, beside the writer's output, to a file."""

    def __init__(self, path: str | Path | None = None) -> None:
        """Configure the log.

        Args:
            path: JSON-lines file to append to; nothing for `<output>.failures.jsonl` beside the
                writer among the Trainer's callbacks, and the log only where there is none.
        """
        self.path = Path(path) if path is not None else None
        self._current: tuple[Any, int] | None = None
        self._recorded: BaseException | None = None

    def on_predict_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Remember the batch: `on_exception` is not told which one it was."""
        self._current = (batch, batch_idx)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Forget the batch."""
        self._current = None

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Record a failure of this rank, once; that of another process, or bad input, is none."""
        if not isinstance(exception, Exception) or isinstance(exception, _OF_NO_SEQUENCE):
            return
        if exception is self._recorded or lost_another_rank(exception):
            return
        self._recorded = exception
        batch, index = self._current or (None, None)
        ids = getattr(exception, "sequence_ids", None) or list(getattr(batch, "ids", ()))
        self.record(trainer, exception, ids, index)

    def record(
        self,
        trainer: Trainer,
        exception: Exception,
        sequence_ids: list[str],
        failed_batch: int | None,
    ) -> None:
        """Log one failure and append it to the file."""
        status = _status(exception)
        log.error(
            "Rank %d, batch %s: %s of %d sequence(s): %s: %s",
            trainer.global_rank,
            "none" if failed_batch is None else failed_batch,
            status,
            len(sequence_ids),
            listed(sequence_ids, MAX_LISTED) or "none known",
            exception,
        )
        path = self.path or _beside_writer(trainer)
        if path is None:
            return
        line = json.dumps(
            {
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "rank": trainer.global_rank,
                "status": status,
                "failed_batch": failed_batch,
                "sequence_ids": sequence_ids,
                "error": f"{type(exception).__name__}: {exception}",
            }
        )
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")  # one write in append mode: ranks do not mix their lines
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:  # raised here, it would take the place of the failure itself
            log.error("%s cannot be written: %s", path, error)


def _beside_writer(trainer: Any) -> Path | None:
    """The file beside the output of a writer, also one of the user's own that names its output."""
    for callback in trainer.callbacks:
        if isinstance(callback, BasePredictionWriter) and hasattr(callback, "path"):
            return failures_file(Path(callback.path))
    return None


def _status(exception: Exception) -> str:
    if isinstance(exception, NumericalInstabilityError):
        return "numerical_instability"
    return "out_of_memory" if is_out_of_memory(exception) else "error"
