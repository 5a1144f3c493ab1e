"""Streams predictions to disk as they are made, and publishes them once every row is there."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from numpy.typing import NDArray

from virnucpro_pl.contracts import (
    Batch,
    Embeddings,
    RowModel,
    Scores,
    Workspace,
    failure_records_of,
    model_of,
    source_of,
)
from virnucpro_pl.errors import OutputError, UsageError
from virnucpro_pl.logs import log_files, start_log_from_python
from virnucpro_pl.output.failures import failures_file
from virnucpro_pl.output.overwriting import is_or_holds, refuse_inputs
from virnucpro_pl.output.part_file import IncompleteError
from virnucpro_pl.output.parts_folder import OVERHEAD
from virnucpro_pl.output.processes import announce_rank_0, close_gloo_at_exit
from virnucpro_pl.output.report import report_file
from virnucpro_pl.output.run import INTERRUPTED, Run, exit_code
from virnucpro_pl.stability import each_outcome

log = logging.getLogger(__name__)


class Published(NamedTuple):
    """What came out of a run."""

    failed: int
    """Rows that failed."""
    result: str
    """What came out, in one line."""
    look: str
    """A command that shows it."""


class StreamingWriter(BasePredictionWriter, Workspace, ABC):
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
        announce_rank_0()
        close_gloo_at_exit()
        self._run = Run(self.path, overwrite)
        self._published = False  # not of a run: an exception behind it must know

    # What a subclass says ---------------------------------------------------------------------

    @property
    @abstractmethod
    def kept(self) -> dict[str, str]:
        """Columns of a prediction that are kept, by their names in the parts."""

    @abstractmethod
    def check_output(self) -> None:
        """Refuse to replace what this writer has not made.

        Raises:
            UsageError: If what is there is of another kind than this output.
        """

    @abstractmethod
    def check_columns(self, model: str, columns: Sequence[str]) -> None:
        """Refuse a model that does not give what is kept.

        Args:
            model: Its class, for the message.
            columns: What it gives.

        Raises:
            UsageError: If something lacks.
        """

    @abstractmethod
    def publish(self, run: Run, parts: list[Path], provenance: dict[str, Any]) -> Published:
        """Make the output from all parts, whole or not at all. Called on rank 0.

        Raises:
            IncompleteError: If any row is missing, doubled, or under a wrong id.
        """

    def narrow(
        self, trainer: Trainer, batch: Batch, batch_idx: int, columns: dict[str, torch.Tensor]
    ) -> None:
        """Turn a pack's columns (N, ...), in their dictionary, into what parts hold of them."""

    def gather(self, run: Run, parts: list[Path]) -> bool:
        """Do a bit of the work of `publish` while the run goes on, with the parts that are there.

        Called on rank 0, in a thread, after its commits; a subclass need not do anything. What it
        raises is no harm: `publish` does the work anew, and meets it again.

        Returns:
            Whether there is more to do.
        """
        return False

    def forget(self) -> None:
        """Remove what has been gathered, unless it is published."""

    def settings(self) -> dict[str, Any]:
        """What the output records of the writer; an interrupted run continues with the same."""
        return {}

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
        run = self._run
        run.signals.remember()
        self._published = False
        beside = run.folder.path, report_file(self.path), failures_file(self.path)
        refuse_inputs((self.path, *beside), inputs)
        for file in log_files():
            if any(is_or_holds(output, file) for output in (self.path, *beside)):
                raise UsageError(f"--log_file {file} is where the output goes: name another file")
        try:
            self.check_output()
            return run.folder.claim()
        except OSError as error:
            raise UsageError(f"{self.path} cannot be written: {error}") from error

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Join the other ranks, and keep predictions out of RAM.

        Raises:
            UsageError: If no data module numbers and names the rows, or the model does not give
                what is kept.
        """
        super().setup(trainer, pl_module, stage)
        start_log_from_python()
        trainer.predict_loop.return_predictions = False
        source, model = source_of(trainer), model_of(trainer)
        self.check_columns(type(pl_module).__name__, model.columns if model else ())
        if source is None:
            raise UsageError(
                f"{type(self).__name__} needs a data module of this package: it numbers the rows"
            )
        assert model is not None, "check_columns refuses a model without columns"
        run = self._run
        run.join(
            trainer,
            source,
            model,
            settings=self.settings(),
            stall_seconds=self.stall_seconds,
            gather=partial(self.gather, run),
            forget=self.forget,
        )

    def finished_rows(self, count: int, trainer: Trainer) -> NDArray[np.bool_]:
        """Flags (count,) of the rows that an earlier run has committed. Called on every rank.

        Raises:
            UsageError: If the earlier run differs in anything that its rows depend on.
        """
        run = self._run
        run.signals.install()  # Lightning has set its own by now
        outcome: tuple[NDArray[np.uint8], str] | UsageError | None = None
        if trainer.is_global_zero:
            try:
                flags = np.packbits(self._resume(run, count))
                outcome = flags, run.folder.manifest.run
            except UsageError as error:
                outcome = error
            except OSError as error:
                outcome = UsageError(
                    f"What an earlier run has left in {run.folder.path} cannot be used: {error}"
                )
        outcome = trainer.strategy.broadcast(outcome)
        if isinstance(outcome, UsageError):
            raise outcome
        assert outcome is not None, "rank 0 has one"
        flags, run.folder.manifest.run = outcome
        done = np.unpackbits(np.asarray(flags, np.uint8), count=count).astype(np.bool_)
        run.report.resumed = int(done.sum())
        return done

    def _resume(self, run: Run, count: int) -> NDArray[np.bool_]:
        done = run.folder.resume(
            count,
            run.provenance,
            partial(self.true_receipts, run),
            run.source.wholly_done,
            run.source.store.unit,
        )
        run.folder.require_space(self.bytes_needed(run, count, count - int(done.sum())))
        return done

    def bytes_needed(self, run: Run, count: int, left: int) -> int:
        """Free bytes for `left` of `count` rows: at the end all parts and the output are there."""
        return (count + left) * (self.row_bytes(run.model) + OVERHEAD)

    def true_receipts(self, run: Run, receipts: list[Path]) -> list[Path]:
        """Those of the receipts whose rows are in the half-made output; of most writers none."""
        return []

    def row_bytes(self, model: RowModel) -> int:
        """Bytes of the kept numbers of a row, float32 all of them."""
        return 4 * sum(map(model.width_of, self.kept.values()))

    # While rows are computed ------------------------------------------------------------------

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a signal waits for the end of the pack, but a second one does not."""
        self._run.begin(trainer)

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Embeddings | Scores,
        batch_indices: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Take a pack's columns, commit when it is time, and look whether the run goes on.

        Raises:
            IncompleteError: If the prediction is not of the batch's rows, one each.
        """
        given: dict[str, torch.Tensor] = prediction._asdict()
        given["outcome"] = each_outcome(prediction.outcome, len(batch.rows))
        names = {**self.kept, "outcome": "outcome"}
        columns = {name: given[column].to("cpu") for name, column in names.items()}
        counts = {len(column) for column in columns.values()}
        if counts != {len(batch.rows)} or not torch.equal(prediction.rows, batch.rows):
            raise IncompleteError(f"Batch {batch_idx} has no prediction for each of its rows")
        self.narrow(trainer, batch, batch_idx, columns)
        self._run.take(batch, columns, self.commit_seconds)

    # After the run ----------------------------------------------------------------------------

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Commit the last rows; when every rank has, rank 0 publishes the output.

        Raises:
            IncompleteError: If any row is missing, doubled, or under a wrong id.
            OutputError: If the output cannot be written.
        """
        run = self._run
        if stage != "predict" or not run.joined:
            return
        per_rank = run.finish()
        if run.rank == 0:
            self._publish(run, trainer, per_rank)
        self._end(run)

    def _publish(self, run: Run, trainer: Trainer, per_rank: list[dict[str, int]]) -> None:
        run.report.begin("merge")
        provenance = run.provenance()
        try:
            failed, result, look = self.publish(run, run.folder.files(), provenance)
        except (OSError, RuntimeError) as error:  # h5py raises either
            raise OutputError(
                f"{self.path} cannot be written: {error}. All rows are committed: make room and "
                "run the same command again"
            ) from error
        self._published = True
        try:
            run.report.write(self.path, trainer, run.source, per_rank, provenance, failed)
        except OSError as error:
            log.warning("The output is whole, but %s: %s", report_file(self.path), error)
        run.folder.remove()
        gaps = f", in which {failed} FAILED rows are NaN" if failed else ""
        level = logging.WARNING if failed else logging.INFO
        log.info("%s", result)
        log.log(level, "Wrote %s%s. Look at it with: %s", self.path, gaps, look)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Tell the other ranks, commit what is finished, and wait until all are on their way.

        A second signal shortens both. What is kept is said last: in a note of the exception, or in
        the log where a signal has ended the run and nobody else says anything.
        """
        run, code = self._run, exit_code(exception)
        run.signals.install()  # while weights were read, they were another's
        run.signals.patient = run.signals.shielded = True
        if code in INTERRUPTED:
            run.signals.note(code)
        for record in failure_records_of(trainer):  # now: once rank 0 ends, nobody waits for it
            record.on_exception(trainer, pl_module, exception)
        last_words = ""
        try:
            run.fail(exception, code)
            if trainer.is_global_zero and code != UsageError.exit_code and not self._published:
                last_words = run.describe_kept(code in INTERRUPTED)
        finally:
            self._end(run)
        if isinstance(exception, Exception) and last_words:
            exception.add_note(last_words)
        elif last_words:
            log.warning("%s", last_words)

    def _end(self, run: Run) -> None:
        try:
            run.close()
        finally:
            self._run = Run(self.path, self.overwrite)  # for another run of the same Trainer
