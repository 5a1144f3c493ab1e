"""The folder in which the parts of an output lie until it is published.

One file for each commit: a kill while HDF5 appends to a file can leave one that does not open, and
several processes write to one file through MPI only. Of a large embedding file, merged parts give
way to receipts (see `receipts`).
"""

from __future__ import annotations

import logging
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from virnucpro_pl.errors import OutputError, UsageError
from virnucpro_pl.output.atomic_files import restore_folder
from virnucpro_pl.output.failures import failures_file
from virnucpro_pl.output.locks import Locks
from virnucpro_pl.output.manifest import Manifest, Provenance
from virnucpro_pl.output.overwriting import is_taken
from virnucpro_pl.output.part_file import Part, count_rows, read_part, write_part
from virnucpro_pl.output.receipts import part_of, receipts_in
from virnucpro_pl.stability import FAILED

log = logging.getLogger(__name__)

REPLACED = "replaced"
"""Name, within the parts, of the output that is being replaced."""
OVERHEAD = 64
"""Bytes of a row beside its numbers: id, row number, length."""


class PartsFolder:
    """`<output>.parts/` in one run: committed parts, their manifest, locks, scratch.

    Attributes:
        output: File or folder that is published.
        path: The folder.
        overwrite: Whether an existing output is replaced, and an earlier run's parts discarded.
        manifest: What the parts depend on.
        locks: Those of this rank.
    """

    def __init__(self, output: Path, overwrite: bool) -> None:
        """Name the folder; nothing is touched yet.

        Args:
            output: File or folder that is published.
            overwrite: Whether to start over.
        """
        self.output = output
        self.path = output.with_name(f"{output.name}.parts")
        self.overwrite = overwrite
        self.manifest = Manifest(self.path)
        self.locks = Locks(self.path, output)
        self._claimed = False
        self._made: list[Path] = []
        self._committed = 0
        self._pending = ""

    def files(self) -> list[Path]:
        """Committed parts."""
        return sorted(self.path.glob("part-*.h5"))

    @property
    def half_made(self) -> Path:
        """The output while it is being made; it stays where receipts are for rows in it."""
        return self.path / "half-made.h5"

    def committed(self) -> list[Path]:
        """Receipts, and the parts that have none."""
        receipts = receipts_in(self.path)
        gone = set(map(part_of, receipts))
        return [*receipts, *(file for file in self.files() if file not in gone)]

    def count_kept(self) -> int:
        """Count the committed rows that a continuation will find."""
        return sum(map(count_rows, self.committed())) if self.manifest.path.exists() else 0

    # Before the run ---------------------------------------------------------------------------

    def claim(self) -> Path:
        """Lock the output for this run, and make room for the record store. Called on rank 0.

        Returns:
            Folder for the record store.

        Raises:
            UsageError: If the output exists, cannot be written, or another run is writing it.
        """
        if is_taken(self.output) and not self.overwrite:
            raise UsageError(
                f"{self.output} exists already; --writer.overwrite true replaces it, "
                "--writer.path names another file"
            )
        records = self.path / "records"
        try:
            self._made = [p for p in (self.path, *self.path.parents) if not p.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            self.locks.take(rank=0)
            self._claimed = True
            restore_folder(self.output, self.path / REPLACED)
            self._sweep()
            records.mkdir()
            (self.path / "ranks").mkdir()
        except OSError as error:
            raise UsageError(f"{self.output} cannot be written: {error}") from error
        return records

    def _sweep(self) -> None:
        """Remove what an earlier run left, but for what it has committed."""
        kept = {self.manifest.path, *self.files(), *(receipts := receipts_in(self.path))}
        kept |= {self.half_made} if receipts else set()
        for item in self.path.iterdir():
            if item in kept or item.name.startswith("lock"):
                continue
            shutil.rmtree(item) if item.is_dir() else item.unlink()

    def resume(
        self,
        count: int,
        provenance: Provenance,
        true_receipts: Callable[[list[Path]], list[Path]] = lambda _: [],
        wholly_done: Callable[[NDArray[np.bool_]], NDArray[np.bool_]] = lambda done: done,
        unit: str = "records",
    ) -> NDArray[np.bool_]:
        """Flags (count,) of the rows that an earlier run has committed. Called on rank 0.

        Args:
            count: Rows of the input.
            provenance: Gives what rows depend on; asked only where there are parts.
            true_receipts: Gives those of some receipts whose rows are in the half-made output.
            wholly_done: Gives those of some flags of rows that need not be computed again together
                with rows that have none.
            unit: What a row is, for the log.

        Raises:
            UsageError: If the earlier run differs in anything that its rows depend on.
        """
        files = self.committed()
        if files and self.overwrite:
            log.info("Starting over: %d part(s) of an earlier run are removed", len(files))
        elif files and not self.manifest.path.exists():
            log.warning("%s: %d part(s) of an unknown run are removed", self.path, len(files))
        elif files:
            done = self._take_over(count, provenance, true_receipts, wholly_done)
            log.info("Continuing: %d of %d %s are committed already", done.sum(), count, unit)
            return done
        self.manifest.path.unlink(missing_ok=True)  # first: parts without one are never trusted
        for file in (*receipts_in(self.path), *self.files()):
            file.unlink()
        self.half_made.unlink(missing_ok=True)
        self.manifest.run = uuid.uuid4().hex
        failures_file(self.output).unlink(missing_ok=True)
        return np.zeros(count, np.bool_)

    def _take_over(
        self,
        count: int,
        provenance: Provenance,
        true_receipts: Callable[[list[Path]], list[Path]],
        wholly_done: Callable[[NDArray[np.bool_]], NDArray[np.bool_]],
    ) -> NDArray[np.bool_]:
        """Check what an earlier run has committed, and remove what cannot be used."""
        before, now = self.manifest.read(), provenance()
        self.manifest.check_same_run(before, now)
        self.manifest.run = str(before.get("run", ""))
        done, failed = np.zeros(count, np.bool_), dict[Path, int]()
        receipts = receipts_in(self.path)
        for receipt in set(receipts) - set(true_receipts(receipts) if receipts else ()):
            log.warning("%s is not true: its rows will be computed again", receipt)
            receipt.unlink()
        for replaced in map(part_of, receipts_in(self.path)):
            replaced.unlink(missing_ok=True)  # a kill has kept it from being deleted
        for file in self.committed():
            part = read_part(file)
            if part is None or part.run != self.manifest.run or _is_strange(part, done):
                log.warning("%s: its rows will be computed again", file)
                file.unlink()
            else:
                done[part.rows] = True
                failed[file] = int((part.columns["outcome"] == FAILED).sum())
        self._let_go(done, wholly_done)
        left = sum(failed[file] for file in self.committed())
        self.manifest.check_same_policy(before, now, left)
        return done

    def _let_go(
        self,
        done: NDArray[np.bool_],
        wholly_done: Callable[[NDArray[np.bool_]], NDArray[np.bool_]],
    ) -> None:
        """Remove parts with rows whose equals are not committed: they are computed together.

        Commits are of whole packs, so that there are some only of what a pack cannot hold.
        """
        gone = True
        while gone and (partly := done & ~wholly_done(done)).any():
            gone = False
            for file in self.committed():
                part = read_part(file)
                if part is not None and partly[part.rows].any():
                    log.warning(
                        "%s: its rows will be computed again, together with others that have the "
                        "same sequences",
                        file,
                    )
                    file.unlink()
                    done[part.rows] = False
                    gone = True

    def require_space(self, needed: int) -> None:
        """Refuse a run that the disk cannot hold.

        Args:
            needed: Bytes.

        Raises:
            UsageError: With the bytes that are needed and those that are free.
        """
        free = shutil.disk_usage(self.path).free
        if needed > free:
            raise UsageError(
                f"{self.path.parent} has {free / 1e9:.3f} GB free, but parts and output need "
                f"{needed / 1e9:.3f} GB: make room or name another --writer.path"
            )

    # While rows are computed ------------------------------------------------------------------

    def commit(self, rank: int, part: Part) -> None:
        """Write one part.

        If it fails after the file has got its name, the same rows committed again replace it.

        Raises:
            OutputError: If it cannot be written; earlier parts are intact.
        """
        name = self._pending or f"part-{rank:05d}-{time.time_ns():x}-{self._committed:06d}.h5"
        self._pending = name
        try:
            write_part(self.path / name, part._replace(run=self.manifest.run))
        except OSError as error:
            raise OutputError(
                f"{self.path / name}: {len(part.rows)} finished rows cannot be written: {error}. "
                "What is committed is safe: make room and run the same command again"
            ) from error
        self._committed += 1
        self._pending = ""

    # After the run ----------------------------------------------------------------------------

    def discard(self) -> None:
        """Leave only committed parts behind, and no folder without any. Acts on rank 0 only."""
        if not self._claimed:
            return
        self._claimed = False
        self.manifest.close()
        try:
            self._clear_up()
        except OSError as error:  # of a disk that has ended the run; the next run does it
            log.warning("%s cannot be cleared up: %s", self.path, error)

    def _clear_up(self) -> None:
        restore_folder(self.output, self.path / REPLACED)
        if self.committed() and self.manifest.path.exists():  # else nobody trusts them
            self._sweep()
            return
        shutil.rmtree(self.path, ignore_errors=True)
        for folder in self._made[1:]:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def remove(self) -> None:
        """Remove the folder: the output is published."""
        try:
            shutil.rmtree(self.path)
        except OSError as error:  # NFS keeps names of files that are still open
            log.warning("%s can be removed now, but not by this program: %s", self.path, error)

    def release(self) -> None:
        """Write nothing from here on, and give the locks back."""
        self.manifest.close()
        self.locks.release()


def _is_strange(part: Part, done: NDArray[np.bool_]) -> bool:
    """Tell whether a part cannot be one of these: rows doubled or beyond the input, no outcome."""
    rows = part.rows
    if "outcome" not in part.columns or (
        len(rows) and not 0 <= rows.min() <= rows.max() < len(done)
    ):
        return True
    return bool(done[rows].any()) or len(np.unique(rows)) < len(rows)
