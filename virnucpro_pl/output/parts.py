"""The folder in which the parts of an output lie until it is published."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from virnucpro_pl.errors import OutputError, UsageError
from virnucpro_pl.output.failures import failures_file
from virnucpro_pl.output.files import write_json
from virnucpro_pl.output.overlap import is_taken
from virnucpro_pl.output.part import Part, count_rows, read_part, write_part
from virnucpro_pl.stability import FAILED

log = logging.getLogger(__name__)

_MAY_DIFFER = re.compile(
    r"(attention|on_instability)(_\w+)?|weights(_dnabert_s|_esm2)?|classifier"
    r"|package_version|torch_version"
)
"""What an interrupted run and its continuation need not have in common: a file's name, for example,
since the hash of its content counts."""
_ORPHAN_SECONDS = 15.0
"""How long to wait for ranks of a killed run to notice that their launcher is gone."""
REPLACED = "replaced"
"""Name, within the parts, of the output that is being replaced."""
_OVERHEAD = 64
"""Bytes of a row beside its numbers: id, row number, length."""


class PartsFolder:
    """`<output>.parts/`: committed parts, the manifest of what they depend on, locks, scratch.

    Attributes:
        output: File or folder that is published.
        path: The folder.
        overwrite: Whether an existing output is replaced, and an earlier run's parts discarded.
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
        self._locks: list[IO[str]] = []
        self._made: list[Path] = []
        self._claim: object | None = None
        self._committed = 0
        self._pending = ""
        self._manifest_written = False
        self._manifest_lock = threading.Lock()
        self._manifest_thread: threading.Thread | None = None

    def files(self) -> list[Path]:
        """Committed parts."""
        return sorted(self.path.glob("part-*.h5"))

    def count_kept(self) -> int:
        """Count the committed rows that a continuation will find."""
        trusted = (self.path / "manifest.json").exists()
        return sum(map(count_rows, self.files())) if trusted else 0

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
            self._lock(self.path / "lock", f"Another run is writing {self.output}: wait for it")
            self._await_orphans()
            self._claim = object()
            self._restore()
            self._sweep()
            records.mkdir()
            (self.path / "ranks").mkdir()
        except OSError as error:
            raise UsageError(f"{self.output} cannot be written: {error}") from error
        return records

    def join(self, rank: int) -> None:
        """Lock this rank's own file: no other run begins while any rank may still commit."""
        if rank > 0:
            self._lock(self.path / f"lock-{rank}", f"Another run is writing {self.output}")

    def _lock(self, path: Path, refusal: str) -> None:
        file = path.open("a")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.close()
                raise UsageError(refusal) from error
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            log.warning(
                "%s: this file system has no locks (%s); make sure yourself that no other run "
                "writes the same output",
                *(path, error),
            )
        self._locks.append(file)

    def _await_orphans(self) -> None:
        """Wait for the other ranks of a killed run: they end when they miss their launcher."""
        deadline = time.monotonic() + _ORPHAN_SECONDS
        for path in self.path.glob("lock-*"):
            while True:
                try:
                    self._lock(path, f"A rank of another run is still writing {self.output}")
                    self._locks.pop().close()
                    break
                except UsageError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.2)

    def _restore(self) -> None:
        """Put an output back that an interrupted run was about to replace."""
        if not self.output.exists() and (self.path / REPLACED).exists():
            (self.path / REPLACED).rename(self.output)

    def _sweep(self) -> None:
        """Remove what an earlier run left, but for its committed parts."""
        for item in self.path.iterdir():
            if item.name == "manifest.json" or item.name.startswith(("part-", "lock")):
                continue
            shutil.rmtree(item) if item.is_dir() else item.unlink()

    def resume(self, count: int, provenance: Callable[[], dict[str, Any]]) -> NDArray[np.bool_]:
        """Flags (count,) of the rows that an earlier run has committed. Called on rank 0.

        Args:
            count: Rows of the input.
            provenance: Gives what rows depend on; asked only where there are parts.

        Raises:
            UsageError: If the earlier run differs in anything that its rows depend on.
        """
        done = np.zeros(count, np.bool_)
        files, manifest = self.files(), self.path / "manifest.json"
        if files and self.overwrite:
            log.info("Starting over: %d part(s) of an earlier run are removed", len(files))
        elif files and not manifest.exists():
            log.warning("%s: %d part(s) of an unknown run are removed", self.path, len(files))
        elif files:
            before, now = self._read_manifest(manifest), provenance()
            self._compare(before, now)
            failed = 0
            for file in files:
                part = read_part(file)
                if part is None or _is_strange(part, done):
                    log.warning("%s: its rows will be computed again", file)
                    file.unlink()
                else:
                    done[part.rows] = True
                    failed += int((part.columns["outcome"] == FAILED).sum())
            self._compare_policies(before, now, failed)
            log.info("Continuing: %d of %d records are committed already", done.sum(), count)
            return done
        manifest.unlink(missing_ok=True)  # first: parts without a manifest are never trusted
        for file in files:
            file.unlink()
        failures_file(self.output).unlink(missing_ok=True)
        return done

    def _read_manifest(self, path: Path) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UsageError(
                f"{path} is damaged ({error}), so that nobody knows what the parts beside it are "
                "of: start over with --writer.overwrite true"
            ) from error
        return content

    def _compare_policies(self, before: dict[str, Any], now: dict[str, Any], failed: int) -> None:
        """Refuse to go on with rows that were left out under another policy."""
        for key in sorted(k for k in now if k.startswith("on_instability")):
            if failed and before.get(key) != now[key]:
                raise UsageError(
                    f"{self.path} holds {failed} rows that were left out since they failed: {key} "
                    f"was {before.get(key)!r} and is {now[key]!r}. Give back what it was, or start "
                    "over with --writer.overwrite true"
                )

    def _compare(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        different = [
            f"{key} was {before.get(key)!r} and is {now.get(key)!r}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key) and not _MAY_DIFFER.fullmatch(key)
        ]
        if different:
            raise UsageError(
                f"{self.path} holds parts of another run: {'; '.join(different)}. "
                "Give back what it was, name another --writer.path, or start over with "
                "--writer.overwrite true"
            )

    def require_space(self, count: int, left: int, row_bytes: int) -> None:
        """Refuse a run that the disk cannot hold.

        Args:
            count: Rows of the output.
            left: Rows that are not committed yet.
            row_bytes: Bytes of a row's numbers.

        Raises:
            UsageError: With the bytes that are needed and those that are free.
        """
        needed = (count + left) * (row_bytes + _OVERHEAD)
        free = shutil.disk_usage(self.path).free
        if needed > free:
            raise UsageError(
                f"{self.path.parent} has {free / 1e9:.3f} GB free, but parts and output need "
                f"{needed / 1e9:.3f} GB: make room or name another --writer.path"
            )

    def write_manifest(self, provenance: Callable[[], dict[str, Any]]) -> None:
        """Tell a continuation what the parts depend on; once. Called on rank 0."""
        if self._manifest_written:
            return
        claim, content = self._claim, provenance()
        with self._manifest_lock:
            if not self._manifest_written and self._claim is claim is not None:
                write_json(self.path / "manifest.json", content)
                self._manifest_written = True

    def write_manifest_soon(self, provenance: Callable[[], dict[str, Any]]) -> None:
        """Do so from a thread, since the hash of the weights may take a while.

        Until it is there the parts are not trusted, but nobody waits for it: a rank that does could
        not follow a signal.
        """

        def write() -> None:
            with contextlib.suppress(OSError, UsageError):  # the next commit tells why not
                self.write_manifest(provenance)

        self._manifest_thread = threading.Thread(target=write, name="manifest", daemon=True)
        self._manifest_thread.start()

    def await_manifest(self, provenance: Callable[[], dict[str, Any]], seconds: float) -> None:
        """Wait so long for the thread; where it has failed, do its work. Called on rank 0.

        Raises:
            OutputError: If the manifest cannot be written.
            UsageError: If the weights are not what they should be.
        """
        thread = self._manifest_thread
        if thread is None:
            return  # nothing of this run can have been committed
        thread.join(seconds)
        if thread.is_alive():
            return
        try:
            self.write_manifest(provenance)
        except OSError as error:
            raise OutputError(
                f"{self.path} cannot be written: {error}. Make room and run the same command again"
            ) from error

    def commit(self, rank: int, part: Part) -> None:
        """Write one part.

        If it fails after the file has got its name, the same rows committed again replace it.

        Raises:
            OutputError: If it cannot be written; earlier parts are intact.
        """
        name = self._pending or f"part-{rank:05d}-{time.time_ns():x}-{self._committed:06d}.h5"
        self._pending = name
        try:
            write_part(self.path / name, part)
        except OSError as error:
            raise OutputError(
                f"{self.path / name}: {len(part.rows)} finished rows cannot be written: {error}. "
                "What is committed is safe: make room and run the same command again"
            ) from error
        self._committed += 1
        self._pending = ""

    def discard(self) -> None:
        """Leave only committed parts behind, and no folder without any. Acts on rank 0 only."""
        if self._claim is None:
            return
        with self._manifest_lock:
            self._claim = None  # nobody writes a manifest any more
        self._restore()
        if self.files() and (self.path / "manifest.json").exists():  # else nobody trusts them
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
        """Give the locks back."""
        for lock in self._locks:
            lock.close()
        self._locks.clear()
        self._pending = ""
        with self._manifest_lock:
            self._claim, self._manifest_written, self._manifest_thread = None, False, None


def _is_strange(part: Part, done: NDArray[np.bool_]) -> bool:
    """Tell whether a part cannot be one of these: rows doubled or beyond the input, no outcome."""
    rows = part.rows
    if "outcome" not in part.columns or (
        len(rows) and not 0 <= rows.min() <= rows.max() < len(done)
    ):
        return True
    return bool(done[rows].any()) or len(np.unique(rows)) < len(rows)
