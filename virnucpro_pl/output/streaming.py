"""Streams predictions to disk as they are made, and publishes them once every row is there."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter, ProgressBar
from numpy.typing import NDArray

from virnucpro_pl.embedding_format import FORMAT_VERSION
from virnucpro_pl.errors import OutputError, PeerError, UsageError
from virnucpro_pl.output.commits import Commits
from virnucpro_pl.output.failures import FailureLog, failures_file
from virnucpro_pl.output.merge import Merge
from virnucpro_pl.output.overlap import is_or_holds, refuse_inputs
from virnucpro_pl.output.part import IncompleteError
from virnucpro_pl.output.parts import PartsFolder
from virnucpro_pl.output.processes import Signals, announce_rank_0, close_gloo_at_exit, watch_rank_0
from virnucpro_pl.output.progress import RunProgress
from virnucpro_pl.output.ranks import Ranks
from virnucpro_pl.output.report import RunReport, report_file
from virnucpro_pl.stability import FAILED, each_outcome
from virnucpro_pl.version import __version__

log = logging.getLogger(__name__)

_COMMIT_BYTES = 64 << 20
_MANIFEST_SECONDS = 5.0
"""How long a run that ends early waits for the hash of its weights; without it its parts are lost,
which is no more than was computed while the weights were read."""
_INTERRUPTED = (130, 143)
"""Exit codes after Ctrl-C and SIGTERM."""


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
        if not commit_seconds >= 0:
            raise UsageError(f"--writer.commit_seconds must be at least 0, not {commit_seconds}")
        if not stall_seconds > 0:
            raise UsageError(f"--writer.stall_seconds must be above 0, not {stall_seconds}")
        self.path = Path(path)
        if self.path.name in ("", "..") or is_or_holds(self.path, Path.cwd()):
            raise UsageError(
                f"--writer.path {str(path) or repr('')} is the working folder itself or one above "
                "it, which cannot be the output: give the output a name, such as results"
            )
        self.overwrite = overwrite
        self.commit_seconds = commit_seconds
        self.stall_seconds = stall_seconds
        self.config = ""
        self.report = RunReport()
        announce_rank_0()
        close_gloo_at_exit()
        self._folder = PartsFolder(self.path, overwrite)
        self._signals = Signals()
        self._ranks: Ranks | None = None
        self._commits: Commits | None = None
        self._gathers = True
        self._total = ""
        self._published = False
        self._bar: ProgressBar | None = None
        self._progress: RunProgress | None = None

    @property
    def parts(self) -> Path:
        """Folder of the parts; there is room for scratch files in it, too."""
        return self._folder.path

    @abstractmethod
    def columns(self, prediction: Any) -> dict[str, torch.Tensor]:
        """Name the tensors (N, ...) of a prediction that are kept."""

    @abstractmethod
    def row_bytes(self, pl_module: LightningModule) -> int:
        """Bytes of the kept numbers of a row."""

    @abstractmethod
    def publish(self, trainer: Trainer, parts: list[Path], provenance: dict[str, Any]) -> int:
        """Make the output from all parts, whole or not at all. Called on rank 0.

        Returns:
            How many rows failed.

        Raises:
            IncompleteError: If any row is missing, doubled, or under a wrong id.
        """

    def gather(self, trainer: Trainer, parts: list[Path]) -> bool:
        """Do a bit of the work of `publish` while the run goes on, with the parts that are there.

        Called on rank 0, in a thread, after its commits; a subclass need not do anything. What it
        raises is no harm: `publish` does the work anew, and meets it again.

        Returns:
            Whether there is more to do.
        """
        return False

    def forget(self) -> None:
        """Remove what has been gathered, unless it is published."""

    @abstractmethod
    def look(self) -> str:
        """A command that shows the output."""

    @abstractmethod
    def result(self, trainer: Trainer, failed: int) -> str:
        """What came out, in one line. Asked for once it is published.

        Args:
            trainer: The Trainer of the run.
            failed: Rows that failed.
        """

    # Before the run ---------------------------------------------------------------------------

    def claim(self, inputs: Sequence[Path]) -> Path:
        """Lock the output for this run, and make room for the record store. Called on rank 0.

        Args:
            inputs: Files and folders that the run reads; none of them is ever written.

        Returns:
            Folder for the record store.

        Raises:
            UsageError: If the output exists, cannot be written, is an input or not what this
                writer replaces, or another run is writing it.
        """
        self._signals.remember()
        self._published = False
        beside = self.parts, report_file(self.path), failures_file(self.path)
        refuse_inputs((self.path, *beside), inputs)
        try:
            self.check_output()
            return self._folder.claim()
        except OSError as error:
            raise UsageError(f"{self.path} cannot be written: {error}") from error

    @abstractmethod
    def check_output(self) -> None:
        """Refuse to replace what this writer has not made.

        Raises:
            UsageError: If what is there is of another kind than this output.
        """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Join the other ranks, and keep predictions out of RAM.

        Raises:
            UsageError: If no data module numbers and names the rows.
        """
        super().setup(trainer, pl_module, stage)
        trainer.predict_loop.return_predictions = False
        bar: Any = trainer.progress_bar_callback
        if bar is not None and bar.is_enabled:
            bar.disable()  # it counts this rank's batches; ours, all ranks' rows
            self._bar = bar
        if not hasattr(trainer.datamodule, "store"):  # type: ignore[attr-defined]
            raise UsageError(
                f"{type(self).__name__} needs a data module of this package: it numbers the rows"
            )
        store = trainer.datamodule.store  # type: ignore[attr-defined]
        self._total = f"{len(store):,} {store.unit}"
        self._signals.speaks = trainer.is_global_zero
        self._signals.remember()  # and no more: Lightning gives back what it finds
        watch_rank_0()
        self._folder.join(trainer.global_rank)
        self._commits = Commits(
            partial(self._folder.commit, trainer.global_rank), partial(self._gather, trainer)
        )
        self._ranks = Ranks(
            self.parts / "ranks",
            trainer.global_rank,
            trainer.world_size,
            getattr(trainer.strategy.launcher, "procs", []),
            self.stall_seconds,
        )

    def finished_rows(self, count: int, trainer: Trainer) -> NDArray[np.bool_]:
        """Flags (count,) of the rows that an earlier run has committed. Called on every rank.

        Raises:
            UsageError: If the earlier run differs in anything that its rows depend on.
        """
        self._signals.install()  # Lightning has set its own by now
        outcome: NDArray[np.uint8] | UsageError | None = None
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
        done = self._folder.resume(count, lambda: self.provenance(trainer))
        row_bytes = self.row_bytes(trainer.lightning_module)
        self._folder.require_space(count, count - int(done.sum()), row_bytes)
        return done

    def provenance(self, trainer: Trainer) -> dict[str, Any]:
        """What the file records about input, model and software. Waits for the weights' hash."""
        return {
            **trainer.datamodule.provenance(),  # type: ignore[attr-defined]
            **trainer.lightning_module.provenance(),  # type: ignore[operator]
            "format_version": FORMAT_VERSION,
            "package_version": __version__,
            "torch_version": str(torch.__version__),
        }

    # While rows are computed ------------------------------------------------------------------

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a signal waits for the end of the pack, but a second one does not."""
        self._signals.install()  # Lightning has set its own, if nobody asked for finished rows
        self._signals.patient = True
        self.report.begin("first pack")
        if trainer.is_global_zero:
            self._folder.write_manifest_soon(lambda: self.provenance(trainer))
            store = trainer.datamodule.store  # type: ignore[attr-defined]
            self._progress = RunProgress(
                len(store),
                self.report.resumed,
                unit=store.unit,
                bar=self._bar is not None,
                loggers=trainer.loggers,
            )

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
            IncompleteError: If the prediction is not of the batch's rows, one each.
            OutputError: If earlier rows could not be committed.
        """
        outcome = each_outcome(prediction.outcome, len(batch.rows))
        kept = {**self.columns(prediction), "outcome": outcome}
        columns = {name: column.to("cpu") for name, column in kept.items()}
        counts = {len(column) for column in columns.values()}
        if counts != {len(batch.rows)} or not torch.equal(prediction.rows, batch.rows):
            raise IncompleteError(f"Batch {batch_idx} has no prediction for each of its rows")
        ranks, commits = self._joined()
        commits.hold(batch.rows, batch.ids, columns)  # not its tokens on the device
        failures = int((columns["outcome"] == FAILED).sum())
        self.report.packed(len(batch.rows), len(batch.tokens), failures)
        commits.check()
        late = time.monotonic() - commits.held_since >= self.commit_seconds
        if late or commits.held_bytes >= _COMMIT_BYTES:
            self._commit(trainer)
        ranks.progress(self.report.counts)
        if self._progress is not None:
            self._progress.update(ranks.totals)
        self._signals.check()
        ranks.check()

    def _commit(self, trainer: Trainer, *, wait: bool = False) -> None:
        """Hand rows over to be committed; or wait until all rows are."""
        if trainer.is_global_zero:
            self._folder.await_manifest(lambda: self.provenance(trainer), seconds=0.0)
        _, commits = self._joined()
        commits.finish() if wait else commits.begin()

    def _gather(self, trainer: Trainer) -> bool:
        if not trainer.is_global_zero or not self._gathers:
            return False
        try:
            return self.gather(trainer, self._folder.files())
        except Exception as error:  # noqa: BLE001 - told, and `publish` meets it again
            self._gathers = False
            log.warning(
                "Parts cannot be merged yet: %s. It is tried again when all rows are committed",
                error,
            )
            self.forget()
            return False

    def merge(self, merge: Merge, parts: list[Path], **table: Any) -> int:
        """Merge what has not been, and publish the file; a signal waits for the end of a part.

        Signals must be shielded: HDF5 does not survive an exception from within.

        Args:
            merge: The file in the making.
            parts: Part files.
            **table: As for `Merge.publish`.

        Returns:
            How many rows have no vector.

        Raises:
            IncompleteError: If any row is missing, doubled, or under a wrong id.
            SystemExit: If a signal has asked to leave before the last part was merged.
        """
        while merge.take(parts, most=1):
            self._signals.check()
        self._signals.check()
        return merge.publish(**table)

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
        self._commit(trainer, wait=True)
        self._signals.patient = False
        self._signals.check()
        per_rank = self._ranks.finish(self.report.counts)
        totals = {name: sum(c.get(name, 0) for c in per_rank) for name in self.report.counts}
        if self._progress is not None:
            self._progress.close(totals)
            self._progress = None
        if trainer.is_global_zero:
            _, commits = self._joined()
            commits.rest()
            self._publish(trainer, totals, per_rank)
        self._close()

    def _publish(
        self, trainer: Trainer, totals: dict[str, int], per_rank: list[dict[str, int]]
    ) -> None:
        self.report.begin("merge")
        provenance = self.provenance(trainer)
        try:
            failed = self.publish(trainer, self._folder.files(), provenance)
        except (OSError, RuntimeError) as error:  # h5py raises either
            raise OutputError(
                f"{self.path} cannot be written: {error}. All rows are committed: make room and "
                "run the same command again"
            ) from error
        self._published = True
        try:
            self.report.write(self.path, trainer, totals, per_rank, provenance, failed)
        except OSError as error:
            log.warning("The output is whole, but %s: %s", report_file(self.path), error)
        self._folder.remove()
        gaps = f", in which {failed} FAILED rows are NaN" if failed else ""
        level = logging.WARNING if failed else logging.INFO
        log.log(level, "Wrote %s%s. Look at it with: %s", self.path, gaps, self.look())
        log.info("%s", self.result(trainer, failed))

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Tell the other ranks, commit what is finished, and wait until all are on their way.

        A second signal shortens both. What is kept is said last: in a note of the exception, or in
        the log where a signal has ended the run and nobody else says anything.
        """
        code = _exit_code(exception)
        self._signals.install()  # while weights were read, they were another's
        self._signals.patient = self._signals.shielded = True
        if code in _INTERRUPTED:
            self._signals.note(code)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, FailureLog):  # now: once rank 0 ends, nobody waits for it
                callback.on_exception(trainer, pl_module, exception)
        kept = ""
        try:
            if self._end_run(trainer, exception, code):
                self._folder.discard()
            if trainer.is_global_zero and code != UsageError.exit_code and not self._published:
                kept = self._kept(code in _INTERRUPTED)
        finally:
            self._close()
        if isinstance(exception, Exception) and kept:
            exception.add_note(kept)
        elif kept:
            log.warning("%s", kept)

    def _end_run(self, trainer: Trainer, exception: BaseException, code: int) -> bool:
        """End this rank's part of a run that fails; tell whether all ranks have ended theirs."""
        if self._ranks is None:
            return True
        if not isinstance(exception, PeerError):
            self._ranks.fail(f"{type(exception).__name__}: {exception}", code)
        _, commits = self._joined()
        try:
            self._signals.hurry(partial(self._commit_rest, trainer))
            if trainer.is_global_zero:
                self._folder.await_manifest(lambda: self.provenance(trainer), _MANIFEST_SECONDS)
        except (OutputError, UsageError, OSError) as error:
            if type(error) is not type(exception):
                log.error("Rank %d: %s", trainer.global_rank, error)
        finally:
            commits.close()
            left = self._ranks.leave(lambda: self._signals.urgent)
        return left

    def _commit_rest(self, trainer: Trainer) -> None:
        _, commits = self._joined()
        commits.rest()
        commits.do(self.forget)  # it takes room that the commit may need
        commits.settle()  # one that has failed is tried once more
        self._commit(trainer, wait=True)

    def _kept(self, interrupted: bool) -> str:
        """Say how many rows are committed, and how the run goes on; nothing if nothing is new."""
        kept = self._folder.count_kept()
        if not kept:
            nothing = "Stopped: nothing is kept; the same command starts from the beginning"
            return nothing if interrupted else ""
        number = f"{kept:,} of {self._total}" if self._total else f"{kept:,} rows"
        command = "the same command"
        if self.overwrite:
            command += " without --writer.overwrite true"
            command += f", with {self.path} moved away," if self.path.exists() else ""
        return f"Stopped: {number} are kept in {self.parts}; {command} goes on from there"

    def _close(self) -> None:
        try:
            if self._commits is not None:
                self._commits.close()
            self.forget()
        finally:
            self._give_back()

    def _give_back(self) -> None:
        self._signals.restore()
        if self._ranks is not None:
            self._ranks.close()
        self._folder.release()
        if self._progress is not None:
            self._progress.close()
        if self._bar is not None:
            self._bar.enable()
        # As new, for another run of the same Trainer.
        self._ranks, self._commits, self._signals = None, None, Signals()
        self._progress, self._bar, self.report = None, None, RunReport()
        self._gathers, self._total = True, ""

    def _joined(self) -> tuple[Ranks, Commits]:
        assert self._ranks is not None, "setup has not run"
        assert self._commits is not None, "setup has not run"
        return self._ranks, self._commits


def _exit_code(exception: BaseException) -> int:
    if isinstance(exception, SystemExit):
        return exception.code if exception.code in _INTERRUPTED else 1  # others are no end of ours
    if isinstance(exception, KeyboardInterrupt):
        return 130
    return int(getattr(exception, "exit_code", 1))
