"""What the ranks of a run tell each other through files, so that none waits for the dead.

A rank that fails leaves a marker with its exit code; the others look for it between packs. A rank
that has finished leaves its counts; only when all have, the collectives and the merge begin. Files
work where a barrier does not: after a failure, under any backend, and across nodes.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from virnucpro_pl.errors import PeerError
from virnucpro_pl.output.files import write_json

__all__ = ["Ranks", "Signals", "launched_by_rank_0", "outlive_rank_0"]

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.05
_CHECK_SECONDS = 0.2
_LEAVE_SECONDS = 45.0
"""How long a failing rank waits for the others, so that the command ends within a minute."""
_ORPHAN_SECONDS = 10.0
"""How long a rank whose launcher has died may take to commit."""


class Ranks:
    """One rank's view of the run."""

    def __init__(
        self, folder: Path, rank: int, count: int, children: list[Any], stall_seconds: float
    ) -> None:
        """Join the run.

        Args:
            folder: Folder shared by all ranks; made and emptied by rank 0 beforehand.
            rank: This rank.
            count: Ranks in all.
            children: Processes of the other ranks, where this rank has launched them.
            stall_seconds: Time without progress after which a rank counts as stalled.
        """
        self.folder = folder
        self.rank = rank
        self.count = count
        self.stall_seconds = stall_seconds
        self._children = children
        self._parent = os.getppid() if launched_by_rank_0() else None
        self._orphaned = threading.Event()
        self._last_check = 0.0
        self._last_progress = time.monotonic()
        self._computing = False
        self._over = threading.Event()
        threading.Thread(target=self._watch, name="rank-watch", daemon=True).start()

    def progress(self, counts: dict[str, int]) -> None:
        """Tell how far this rank is; at most once a second."""
        now = time.monotonic()
        self._computing = True
        if now - self._last_progress >= 1 or not self._file("progress").exists():
            self._last_progress = now
            write_json(self._file("progress"), counts)

    def totals(self) -> dict[str, int]:
        """Counts of all ranks together, as far as they have told."""
        total: dict[str, int] = {}
        for rank in range(self.count):
            for name, value in (self._read("done", rank) or self._read("progress", rank) or {}).items():
                total[name] = total.get(name, 0) + value
        return total

    def counts(self) -> list[dict[str, int]]:
        """Final counts of each rank."""
        return [self._read("done", rank) or {} for rank in range(self.count)]

    def check(self) -> None:
        """Raise if another rank failed, died or stalled, or the launcher is gone.

        Looks at most five times a second, since the folder may lie on a network.

        Raises:
            PeerError: With the exit code of the run.
        """
        now = time.monotonic()
        if now - self._last_check < _CHECK_SECONDS:
            return
        self._last_check = now
        for rank in range(self.count):
            failed = self._read("failed", rank) if rank != self.rank else None
            if failed:
                raise PeerError(f"rank {rank}: {failed['message']}", failed["code"])
        for rank, child in enumerate(self._children, start=1):
            if child.poll() not in (None, 0) and not self._file("left", rank).exists():
                raise PeerError(f"rank {rank} died (exit code {child.returncode})")
        if self._orphaned.is_set():
            raise PeerError("rank 0 died")
        self._check_stalls()

    def _check_stalls(self) -> None:
        for rank in range(self.count):
            file = self._file("progress", rank)
            if rank == self.rank or self._file("done", rank).exists() or not file.exists():
                continue
            try:
                silent = time.time() - file.stat().st_mtime
            except FileNotFoundError:  # being replaced
                continue
            if silent > self.stall_seconds:
                raise PeerError(f"rank {rank} stalled: no progress for {silent:.0f} s")

    def finish(self, counts: dict[str, int]) -> None:
        """Tell that this rank has committed all its rows, and wait until all ranks have.

        Raises:
            PeerError: If another rank failed, died or stalled instead.
        """
        self._computing = False
        write_json(self._file("done"), counts)
        while any(not self._file("done", rank).exists() for rank in range(self.count)):
            self.check()
            time.sleep(_POLL_SECONDS)

    def fail(self, message: str, code: int) -> None:
        """Leave the marker that ends the other ranks' loops."""
        if self.count > 1:
            write_json(self._file("failed"), {"message": message, "code": code})

    def leave(self) -> None:
        """Wait until all ranks are on their way out."""
        self._computing = False
        if self.count == 1:
            return
        self._file("left").touch()
        deadline = time.monotonic() + _LEAVE_SECONDS
        others = [rank for rank in range(self.count) if rank != self.rank]
        while time.monotonic() < deadline and not self._orphaned.is_set():
            if all(self._file("left", r).exists() or self._dead(r) for r in others):
                break
            time.sleep(_POLL_SECONDS)
        else:
            log.warning("Rank %d leaves without waiting any longer for the others", self.rank)

    def close(self) -> None:
        """Stop the watching thread."""
        self._over.set()

    def _dead(self, rank: int) -> bool:
        return rank <= len(self._children) and self._children[rank - 1].poll() is not None

    def _watch(self) -> None:
        """End this process if its launcher died or its own loop hangs; a thread, so it always can."""
        while not self._over.wait(0.5):
            if self._parent is not None and os.getppid() != self._parent:
                self._orphaned.set()
                if not self._over.wait(_ORPHAN_SECONDS):
                    os._exit(1)
                return
            silent = time.monotonic() - self._last_progress
            if self._computing and silent > self.stall_seconds:
                message = f"stalled: no progress for {silent:.0f} s"
                log.error("Rank %d %s; ending the run", self.rank, message)
                self.fail(message, 1)
                os._exit(1)

    def _file(self, kind: str, rank: int | None = None) -> Path:
        return self.folder / f"rank-{self.rank if rank is None else rank}.{kind}"

    def _read(self, kind: str, rank: int) -> dict[str, Any] | None:
        try:
            content: dict[str, Any] = json.loads(self._file(kind, rank).read_text())
        except FileNotFoundError:
            return None
        return content


def outlive_rank_0() -> None:
    """Wait for rank 0 to exit, if it launched this process: its launcher kills it when a child fails."""
    parent = os.getppid()
    deadline = time.monotonic() + 2 * _LEAVE_SECONDS
    while launched_by_rank_0() and os.getppid() == parent and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


def launched_by_rank_0() -> bool:
    """Tell whether Lightning's own launcher made this process, so that its parent is rank 0."""
    external = "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_NTASKS" in os.environ
    return not external and os.environ.get("LOCAL_RANK", "0") != "0"


class Signals:
    """SIGTERM and Ctrl-C as a wish to leave after the current pack.

    Lightning ignores the one, exits 1 on the other, and its SIGTERM handler enters a collective.
    """

    def __init__(self) -> None:
        """Start without any signal received; nothing is installed yet."""
        self.code: int | None = None
        self.patient = False
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Take both signals over; again after somebody else has set a handler."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            before = signal.signal(number, self._receive)
            if before != self._receive:
                self._before.setdefault(number, before)

    def restore(self) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def check(self) -> None:
        """Leave, if a signal has asked for it.

        Raises:
            SystemExit: With 143 after SIGTERM, 130 after Ctrl-C.
        """
        if self.code is not None:
            raise SystemExit(self.code)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.code = 128 + number
        if not self.patient:  # nothing is being computed that would be worth finishing
            raise SystemExit(self.code)
