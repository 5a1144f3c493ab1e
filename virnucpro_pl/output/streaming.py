"""Streams predictions to disk as they are made, and publishes them once every row is there."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import time
from abc import ABC, abstractmethod
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from numpy.typing import NDArray

from virnucpro_pl.errors import PeerError, UsageError
from virnucpro_pl.output.failures import failures_file
from virnucpro_pl.output.files import TEMPORARY, write_json
from virnucpro_pl.output.ranks import Ranks, Signals
from virnucpro_pl.output.report import Heartbeat, RunReport
from virnucpro_pl.output.store import FORMAT_VERSION, Part, read_part, write_part

__all__ = ["StreamingWriter"]

log = logging.getLogger(__name__)

_COMMIT_BYTES = 256 << 20
_MUST_MATCH = (
    "format_version", "input_sha256", "max_length", "model", "weights_sha256",
    "tokenizer_sha256", "layer", "pooling", "precision",
)  # fmt: skip
"""What an interrupted run and its continuation must have in common."""


class Batch(Protocol):
    """What a writer needs of a batch."""

    @property
    def rows(self) -> torch.Tensor:
        """(N,) int64 row of each sequence in the input; on the host."""

    @property
    def ids(self) -> tuple[str, ...]:
        """(N,) id of each sequence."""

    @property
    def tokens(self) -> torch.Tensor:
        """(T,) what the throughput counts."""


class StreamingWriter(BasePredictionWriter, ABC):
    """What all writers share: parts, commits, resuming, and the end of a run with several ranks.

    Every rank commits part files to `<path>.parts/`; when every rank has finished, rank 0 publishes
    the output by renaming it. The same command run again continues an interrupted run.

    A subclass says which columns of a prediction are kept, and what is published.

    Attributes:
        path: File or folder that is published.
        config: The resolved configuration, for the output; set by the command line.
    """

    def __init__(
        self,
        path: str | Path,
        overwrite: bool = False,
        commit_seconds: float = 60.0,
        stall_seconds: float = 600.0,
    ) -> None:
        """Configure the output; nothing is touched yet.

        Args:
            path: File or folder to write.
            overwrite: Whether to replace an existing file and discard an interrupted run's parts.
            commit_seconds: Longest time that finished rows stay uncommitted.
            stall_seconds: Time without progress after which a rank is reported as stalled.
        """
        super().__init__(write_interval="batch")
        self.path = Path(path)
        self.overwrite = overwrite
        self.commit_seconds = commit_seconds
        self.stall_seconds = stall_seconds
        self.config = ""
        self.parts = self.path.with_name(f"{self.path.name}.parts")
        self.report = RunReport()
        self._signals = Signals()
        self._ranks: Ranks | None = None
        self._lock: TextIOWrapper | None = None
        self._waiting: list[tuple[Batch, dict[str, torch.Tensor]]] = []
        self._waiting_bytes = 0
        self._waiting_since = 0.0
        self._committed = 0
        self._manifest_written = False

    @abstractmethod
    def columns(self, prediction: Any) -> dict[str, torch.Tensor]:
        """Name the tensors (N, ...) of a prediction that are kept."""

    @abstractmethod
    def publish(self, trainer: Trainer, parts: list[Path], provenance: dict[str, Any]) -> None:
        """Make the output from all parts, whole or not at all. Called on rank 0.

        Raises:
            IncompleteError: If any row is missing, doubled, or under a wrong id.
        """

    @abstractmethod
    def look(self) -> str:
        """A command that shows the output."""

    # Before the run ---------------------------------------------------------------------------

    def claim(self) -> Path:
        """Lock the output for this run, and make room for the record store. Called on rank 0.

        Returns:
            Folder for the record store.

        Raises:
            UsageError: If the output exists, cannot be written, or another run is writing it.
        """
        if self.path.exists() and not self.overwrite:
            raise UsageError(
                f"{self.path} exists already; --writer.overwrite true replaces it, "
                "--writer.path names another file"
            )
        records = self.parts / "records"
        try:
            self.parts.mkdir(parents=True, exist_ok=True)
            lock = (self.parts / "lock").open("w")
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UsageError(f"Another run is writing {self.path}: wait for it") from error
            self._lock = lock
            self._clean()
            records.mkdir()
            (self.parts / "ranks").mkdir()
        except OSError as error:
            raise UsageError(f"{self.path} cannot be written: {error}") from error
        return records

    def _clean(self) -> None:
        """Remove what an earlier run left, but for its committed parts, unless told to start over."""
        for item in self.parts.iterdir():
            keep = item.name == "manifest.json" or item.name.startswith("part-")
            if item.name == "lock" or (keep and not self.overwrite):
                continue
            shutil.rmtree(item) if item.is_dir() else item.unlink()
        if not self._part_files():
            failures_file(self.path).unlink(missing_ok=True)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Join the other ranks, and keep predictions out of RAM.

        Raises:
            UsageError: If no data module numbers and names the rows.
        """
        super().setup(trainer, pl_module, stage)
        trainer.predict_loop.return_predictions = False
        if not hasattr(trainer.datamodule, "store"):  # type: ignore[attr-defined]
            raise UsageError(f"{type(self).__name__} needs a data module of this package: it numbers the rows")
        self._ranks = Ranks(
            self.parts / "ranks",
            trainer.global_rank,
            trainer.world_size,
            getattr(trainer.strategy.launcher, "procs", []),
            self.stall_seconds,
        )
        self._signals.install()

    def finished_rows(self, count: int, trainer: Trainer) -> NDArray[np.bool_]:
        """Flags (count,) of the rows that an earlier run has committed. Called on every rank.

        Raises:
            UsageError: If the earlier run differs in anything that its rows depend on.
        """
        outcome: NDArray[np.bool_] | UsageError | None = None
        if trainer.is_global_zero:
            try:
                outcome = np.packbits(self._resume(count, trainer))
            except UsageError as error:
                outcome = error
        outcome = trainer.strategy.broadcast(outcome)
        if isinstance(outcome, UsageError):
            raise outcome
        done = np.unpackbits(np.asarray(outcome, np.uint8), count=count).astype(np.bool_)
        self.report.resumed = int(done.sum())
        return done

    def _resume(self, count: int, trainer: Trainer) -> NDArray[np.bool_]:
        done = np.zeros(count, np.bool_)
        files = self._part_files()
        if not files:
            return done
        manifest = self.parts / "manifest.json"
        if not manifest.exists():
            log.warning("%s: %d part(s) of an unknown run are removed", self.parts, len(files))
            for file in files:
                file.unlink()
            return done
        self._compare(json.loads(manifest.read_text()), self.provenance(trainer))
        for file in files:
            part = read_part(file)
            if part is None:
                file.unlink()
            else:
                done[part.rows] = True
        log.info("Continuing: %d of %d records are committed already", done.sum(), count)
        return done

    def _compare(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        different = [
            f"{key} was {before.get(key)!r} and is {now.get(key)!r}"
            for key in _MUST_MATCH
            if before.get(key) != now.get(key)
        ]
        if different:
            raise UsageError(
                f"{self.parts} holds parts of another run: {'; '.join(different)}. "
                "Give back what it was, name another --writer.path, or start over with "
                "--writer.overwrite true"
            )

    def provenance(self, trainer: Trainer) -> dict[str, Any]:
        """What the file records about input, model and software. Waits for the weights' hash."""
        from virnucpro_pl import __version__

        return {
            **trainer.datamodule.provenance(),  # type: ignore[attr-defined]
            **trainer.lightning_module.provenance(),  # type: ignore[operator]
            "format_version": FORMAT_VERSION,
            "package_version": __version__,
            "torch_version": str(torch.__version__),
        }

    # While rows are computed ------------------------------------------------------------------

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a signal waits for the end of the pack."""
        self._signals.install()  # Lightning has set its own since `setup`
        self._signals.patient = True
        self._waiting_since = time.monotonic()
        self.report.begin("compute")
        self._heartbeat = Heartbeat(len(trainer.datamodule.store), self.report.resumed)  # type: ignore[attr-defined]

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Take a pack's vectors, commit when it is time, and look whether the run goes on.

        Raises:
            SystemExit: If a signal has asked to leave.
            PeerError: If another rank failed, died or stalled.
        """
        columns = {name: c.to("cpu") for name, c in self.columns(prediction).items()}
        self._waiting.append((batch, columns))
        self._waiting_bytes += sum(column.nbytes for column in columns.values())
        self.report.count(records=len(batch.rows), tokens=len(batch.tokens), packs=1)
        late = time.monotonic() - self._waiting_since >= self.commit_seconds
        if late or self._waiting_bytes >= _COMMIT_BYTES:
            self._commit(trainer)
        ranks = self._joined()
        ranks.progress(self.report.counts)
        if trainer.is_global_zero:
            self._heartbeat.beat(ranks.totals)
        self._signals.check()
        ranks.check()

    def _commit(self, trainer: Trainer) -> None:
        self._waiting_since = time.monotonic()
        if not self._waiting:
            return
        batches, columns = zip(*self._waiting, strict=True)
        part = Part(
            np.concatenate([batch.rows.numpy() for batch in batches]),
            [identifier for batch in batches for identifier in batch.ids],
            {name: torch.cat([c[name] for c in columns]).numpy() for name in columns[0]},
        )
        if trainer.is_global_zero and not self._manifest_written:
            write_json(self.parts / "manifest.json", self.provenance(trainer))
            self._manifest_written = True
        name = f"part-{trainer.global_rank:05d}-{time.time_ns():x}-{self._committed:06d}.h5"
        write_part(self.parts / name, part)
        self._committed += 1
        self._waiting.clear()
        self._waiting_bytes = 0

    # After the run ----------------------------------------------------------------------------

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Commit the last rows; when every rank has, rank 0 publishes the file.

        Raises:
            IncompleteError: If any row is missing, doubled, or under a wrong id.
            PeerError: If another rank failed, died or stalled.
        """
        if stage != "predict" or self._ranks is None:
            return
        self._signals.install()  # Lightning has given them back
        self._commit(trainer)
        self._ranks.finish(self.report.counts)
        self._signals.check()
        self._signals.patient = False
        totals = self.report.reduce(trainer)
        if trainer.is_global_zero:
            self._publish(trainer, totals)
        self._close()

    def _publish(self, trainer: Trainer, totals: dict[str, int]) -> None:
        self.report.begin("merge")
        provenance = self.provenance(trainer)
        self.publish(trainer, self._part_files(), provenance)
        self.report.write(self.path, trainer, totals, self._joined().counts(), provenance)
        shutil.rmtree(self.parts)
        log.info("Wrote %s. Look at it with: %s", self.path, self.look())

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Commit what is finished, tell the other ranks, and wait until all are on their way out."""
        if isinstance(exception, UsageError):
            self._forget(trainer)
            return
        if self._ranks is None:
            return
        code = _exit_code(exception)
        try:
            self._commit(trainer)
        except OSError as error:
            log.error("Rank %d could not commit its last rows: %s", trainer.global_rank, error)
        if not isinstance(exception, PeerError):
            self._ranks.fail(f"{type(exception).__name__}: {exception}", code)
        self._ranks.leave()
        self._close()

    def _forget(self, trainer: Trainer) -> None:
        """Nothing was computed: leave no folder behind, unless an earlier run's parts are in it."""
        if trainer.is_global_zero and self._lock is not None and not self._part_files():
            shutil.rmtree(self.parts, ignore_errors=True)
        self._close()

    def _close(self) -> None:
        self._signals.restore()
        self._signals.patient = False
        if self._ranks is not None:
            self._ranks.close()
            self._ranks = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _joined(self) -> Ranks:
        assert self._ranks is not None, "setup has not run"
        return self._ranks

    def _part_files(self) -> list[Path]:
        return sorted(self.parts.glob("part-*.h5"))


def _exit_code(exception: BaseException) -> int:
    if isinstance(exception, SystemExit):
        return int(exception.code or 0)
    if isinstance(exception, KeyboardInterrupt):
        return 130
    return int(getattr(exception, "exit_code", 1))
