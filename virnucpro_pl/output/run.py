"""The state of one run of a writer, on one rank."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar

from virnucpro_pl.contracts import Batch, RowModel, RowSource
from virnucpro_pl.embedding_format import FORMAT_VERSION
from virnucpro_pl.errors import ExpectedError, OutputError, PeerError, UsageError
from virnucpro_pl.output.commits import Commits
from virnucpro_pl.output.merge import Merge
from virnucpro_pl.output.parts_folder import PartsFolder
from virnucpro_pl.output.processes import watch_rank_0
from virnucpro_pl.output.progress import RunProgress
from virnucpro_pl.output.ranks import Ranks
from virnucpro_pl.output.report import RunReport
from virnucpro_pl.output.signals import Signals
from virnucpro_pl.stability import FAILED
from virnucpro_pl.version import __version__

log = logging.getLogger(__name__)

INTERRUPTED = (130, 143)
"""Exit codes after Ctrl-C and SIGTERM."""
COMMIT_BYTES = 64 << 20
"""Bytes of finished numbers at which a rank commits them."""
_MANIFEST_SECONDS = 5.0
"""How long a run that ends early waits for the hash of its weights; without it its parts are lost,
which is no more than was computed while the weights were read."""


class Run:
    """A run from when its writer is made, or has ended another, to its end.

    Once the ranks have met it is told, in this order: `join`, `begin`, `take` for each pack, then
    `finish` or `fail`; `close` ends it in any case.

    Attributes:
        signals: How it is asked to stop.
        folder: Where its rows are committed.
        report: Counts, and the time of each phase.
        joined: Whether the ranks have met, so that there is what follows here.
        source: The data module.
        model: The model.
        rank: This rank; 0 does what is done once.
        commits: Rows that are finished but not committed.
        ranks: The other ranks.
    """

    source: RowSource
    model: RowModel
    rank: int
    commits: Commits
    ranks: Ranks

    def __init__(self, output: Path, overwrite: bool) -> None:
        """Start the clock; nothing is touched yet.

        Args:
            output: File or folder that is published.
            overwrite: Whether to start over.
        """
        self.signals = Signals()
        self.folder = PartsFolder(output, overwrite)
        self.report = RunReport()
        self.joined = False
        self._gathers = True
        self._bar: ProgressBar | None = None
        self._progress: RunProgress | None = None

    # Before -----------------------------------------------------------------------------------

    def join(
        self,
        trainer: Trainer,
        source: RowSource,
        model: RowModel,
        *,
        settings: Mapping[str, Any],
        stall_seconds: float,
        gather: Callable[[list[Path]], bool],
        forget: Callable[[], None],
    ) -> None:
        """Meet the other ranks.

        Args:
            trainer: The Trainer.
            source: Its data module.
            model: Its model.
            settings: What the output records of the writer.
            stall_seconds: Time without progress after which a rank is reported as stalled.
            gather: Does a bit of the work of publishing, with the parts that are there; tells
                whether there is more to do.
            forget: Removes what has been gathered, unless it is published.

        Raises:
            UsageError: If another run is writing the output, or it cannot be written.
        """
        self.source, self.model, self.rank = source, model, trainer.global_rank
        self._settings, self._gather, self._forget = settings, gather, forget
        bar: Any = trainer.progress_bar_callback
        if bar is not None and bar.is_enabled:
            bar.disable()  # it counts this rank's batches; ours, all ranks' rows
            self._bar = bar
        self.signals.speaks = trainer.is_global_zero
        self.signals.remember()  # and no more: Lightning gives back what it finds
        watch_rank_0()
        if self.rank > 0:  # rank 0 has claimed it
            try:
                self.folder.locks.take(self.rank)
            except OSError as error:
                raise UsageError(f"{self.folder.path} cannot be written: {error}") from error
        self.commits = Commits(partial(self.folder.commit, self.rank), self._gather_more)
        self.ranks = Ranks(
            self.folder.path / "ranks",
            self.rank,
            trainer.world_size,
            getattr(trainer.strategy.launcher, "procs", []),
            stall_seconds,
        )
        self.joined = True

    def provenance(self) -> dict[str, Any]:
        """What the output records about input, model and software. Waits for the weights' hash."""
        return {
            **self.source.provenance(),
            **self.model.provenance(),
            "format_version": FORMAT_VERSION,
            "package_version": __version__,
            "torch_version": str(torch.__version__),
            **self._settings,
        }

    def begin(self, trainer: Trainer) -> None:
        """From here on a signal waits for the end of the pack, but a second one does not."""
        self.signals.install()  # Lightning has set its own, if nobody asked for finished rows
        self.signals.patient = True
        self.report.begin("first pack")
        if self.rank == 0:
            self.folder.manifest.write_soon(self.provenance)
            self._progress = RunProgress(
                len(self.source.store),
                self.report.resumed,
                unit=self.source.store.unit,
                bar=self._bar is not None,
                loggers=trainer.loggers,
            )

    # While rows are computed ------------------------------------------------------------------

    def take(self, batch: Batch, columns: dict[str, torch.Tensor], commit_seconds: float) -> None:
        """Take a pack's columns (N, ...), commit when it is time, and look whether the run goes on.

        Raises:
            SystemExit: If a signal has asked to leave.
            PeerError: If another rank failed, died or stalled.
            OutputError: If earlier rows could not be committed.
        """
        self.commits.hold(batch.rows, batch.ids, columns)  # not its tokens on the device
        failures = int((columns["outcome"] == FAILED).sum())
        self.report.packed(len(batch.rows), len(batch.tokens), failures)
        self.commits.check()
        late = time.monotonic() - self.commits.held_since >= commit_seconds
        if late or self.commits.held_bytes >= COMMIT_BYTES:
            self.folder.manifest.wait()
            self.commits.begin()
        self.ranks.progress(self.report.counts)
        if self._progress is not None:
            self._progress.update(self.ranks.totals)
        self.signals.check()
        self.ranks.check()

    def _gather_more(self) -> bool:
        if self.rank > 0 or not self._gathers:
            return False
        try:
            return self._gather(self.folder.files())
        except Exception as error:  # noqa: BLE001 - told, and `publish` meets it again
            self._gathers = False
            log.warning(
                "Parts cannot be merged yet: %s. It is tried again when all rows are committed",
                error,
            )
            self._forget()
            return False

    # After ------------------------------------------------------------------------------------

    def finish(self) -> list[dict[str, int]]:
        """Commit the last rows, and wait until every rank has.

        Returns:
            Counts of each rank; none on ranks above 0.

        Raises:
            OutputError: If rows cannot be committed.
            PeerError: If another rank failed, died or stalled.
        """
        self.signals.install()  # Lightning has given them back
        self._commit_all()
        self.signals.patient = False
        self.signals.check()
        per_rank = self.ranks.finish(self.report.counts)
        if self._progress is not None:
            self._progress.close(self.report.add_up(per_rank))
            self._progress = None
        if self.rank == 0:
            self.commits.rest()
        return per_rank

    def _commit_all(self) -> None:
        self.folder.manifest.wait()
        self.commits.finish()

    def take_parts(self, merge: Merge, parts: Iterable[Path]) -> None:
        """Merge what has not been; a signal waits for the end of a part.

        Signals must be shielded: HDF5 does not survive an exception from within.

        Args:
            merge: The file in the making.
            parts: Part files.

        Raises:
            IncompleteError: If a row is doubled, damaged, or under a wrong id.
            SystemExit: If a signal has asked to leave before the last part was merged.
        """
        while merge.take(parts, most=1):
            self.signals.check()
        self.signals.check()

    def fail(self, exception: BaseException, code: int) -> None:
        """Tell the other ranks, commit what is finished, and wait until all are on their way.

        Args:
            exception: What ends the run.
            code: Its exit code.
        """
        if not self.joined:
            self.folder.discard()
            return
        if not isinstance(exception, PeerError):
            self.ranks.fail(f"{type(exception).__name__}: {exception}", code)
        try:
            self.signals.hurry(self._commit_rest)
            self.folder.manifest.wait(_MANIFEST_SECONDS)
        except (OutputError, UsageError, OSError) as error:
            if type(error) is not type(exception):
                log.error("Rank %d: %s", self.rank, error)
        finally:
            self.commits.close()
            all_left = self.ranks.leave(lambda: self.signals.urgent)
        if all_left:
            self.folder.discard()

    def _commit_rest(self) -> None:
        self.commits.rest()
        self.commits.do(self._forget)  # it takes room that the commit may need
        self.commits.settle()  # one that has failed is tried once more
        self._commit_all()

    def describe_kept(self, interrupted: bool) -> str:
        """Say how many rows are committed, and how the run goes on; nothing if nothing is new."""
        folder = self.folder
        kept = folder.count_kept()
        if not kept:
            nothing = "Stopped: nothing is kept; the same command starts from the beginning"
            return nothing if interrupted else ""
        number = f"{kept:,} rows"
        if self.joined:
            number = f"{kept:,} of {len(self.source.store):,} {self.source.store.unit}"
        command = "the same command"
        if folder.overwrite:
            command += " with --writer.overwrite false"
            command += f", with {folder.output} moved away," if folder.output.exists() else ""
        return f"Stopped: {number} are kept in {folder.path}; {command} goes on from there"

    def close(self) -> None:
        """End the thread, and give back signals, locks and the bar."""
        try:
            if self.joined:
                self.commits.close()
                self._forget()
        finally:
            self.signals.restore()
            if self.joined:
                self.ranks.close()
            self.folder.release()
            if self._progress is not None:
                self._progress.close()
            if self._bar is not None:
                self._bar.enable()


def exit_code(exception: BaseException) -> int:
    """Exit code of a run that ends so."""
    if isinstance(exception, SystemExit):
        return exception.code if exception.code in INTERRUPTED else 1  # others are no end of ours
    if isinstance(exception, KeyboardInterrupt):
        return 130
    return exception.exit_code if isinstance(exception, ExpectedError) else 1
