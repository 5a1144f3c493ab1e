"""What the ranks of a run tell each other through files, so that none waits for the dead.

A rank that fails leaves a marker with its exit code; the others look for it between packs. A rank
that has finished leaves its counts; only when all have, the merge begins. Files work where a
barrier of torch.distributed hangs: once a rank has died, under any backend and across nodes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from virnucpro_pl.errors import OutputError, PeerError, listed
from virnucpro_pl.output.atomic_files import write_json
from virnucpro_pl.output.processes import (
    kill_rank_0,
    launched_by_rank_0,
    outlive_rank_0,
    rank_0_is_gone,
)

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.05
_CHECK_SECONDS = 0.2
_BLOCKED_SECONDS = 3.0
"""How long a rank that computes nothing may ignore another's failure, before its thread ends it."""
_LEAVE_SECONDS = 40.0
"""How long a failing rank waits for the others, so that the command ends within a minute."""
_HURRY_SECONDS = 1.0
"""How long it does so where there was a second signal, which mostly reaches all ranks."""


class _Failure(NamedTuple):
    message: str
    """Names the rank and what happened to it."""
    code: int
    """Exit code of the run."""


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
            children: Processes of the next ranks, where this rank has launched them.
            stall_seconds: Time without progress after which a rank counts as stalled.
        """
        self.folder = folder
        self.rank = rank
        self.count = count
        self.stall_seconds = stall_seconds
        self._others = [other for other in range(count) if other != rank]
        self._children = {rank + i: child for i, child in enumerate(children, start=1)}
        self._last_check = 0.0
        self._last_progress = 0.0
        self._last_written = 0.0
        self._computing = False
        self._seen: dict[int, tuple[int, float]] = {}
        self._stalled: set[int] = set()
        self._over = threading.Event()
        threading.Thread(target=self._watch, name="rank-watch", daemon=True).start()

    # While rows are computed ------------------------------------------------------------------

    def progress(self, counts: dict[str, int]) -> None:
        """Tell how far this rank is; at most once a second."""
        self._last_progress = now = time.monotonic()
        self._computing = True
        if now - self._last_written >= 1:
            self._last_written = now
            with contextlib.suppress(OSError):  # a full disk is for the commits to tell
                write_json(self._file("progress"), counts, durable=False)

    def totals(self) -> dict[str, int]:
        """Counts of all ranks together, as far as they have told."""
        total: dict[str, int] = {}
        for rank in range(self.count):
            counts = self._read("done", rank) or self._read("progress", rank) or {}
            for name, value in counts.items():
                total[name] = total.get(name, 0) + value
        return total

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
        failure = self._marked_failure() or self._silent_failure(now)
        if failure:
            raise PeerError(failure.message, failure.code)

    def _marked_failure(self) -> _Failure | None:
        """The failure that another rank has left a marker for."""
        for rank in self._others:
            if marker := self._read("failed", rank):
                return _Failure(marker["message"], marker["code"])
        return None

    def _silent_failure(self, now: float) -> _Failure | None:
        """A failure that another rank cannot tell of; this one does for it."""
        message = "rank 0 died" if rank_0_is_gone() else None
        for rank, child in self._children.items():
            if child.poll() not in (None, 0) and not self._file("left", rank).exists():
                message = f"rank {rank} died (exit code {child.returncode})"
        for rank in self._others:
            if (silent := self._silence(rank, now)) > self.stall_seconds:
                self._stalled.add(rank)
                message = f"rank {rank} stalled: no progress for {silent:.0f} s"
        if message is None:
            return None
        if launched_by_rank_0():  # otherwise rank 0 says it at its end
            log.error("Rank %d: %s", self.rank, message)
        self._mark(message, 1)
        return _Failure(message, 1)

    def _silence(self, rank: int, now: float) -> float:
        """Seconds since a rank last told of progress, by this machine's clock alone."""
        if self._is_done(rank):
            return 0.0
        try:
            written = self._file("progress", rank).stat().st_mtime_ns
        except OSError:
            written = 0  # no pack yet
        before, since = self._seen.get(rank, (-1, now))
        if written != before:
            since = now
        self._seen[rank] = written, since
        return now - since

    # The end ----------------------------------------------------------------------------------

    def finish(self, counts: dict[str, int]) -> list[dict[str, int]]:
        """Tell that this rank has committed all its rows, and wait until all ranks have.

        Returns:
            Final counts of each rank; none on ranks above 0, which may be left behind by then.

        Raises:
            PeerError: If another rank failed, died or stalled instead.
            OutputError: If it cannot be told.
        """
        self._computing = False
        try:
            write_json(self._file("done"), counts)
        except OSError as error:
            raise OutputError(
                f"{self._file('done')} cannot be written: {error}. What is committed is safe: make "
                "room and run the same command again"
            ) from error
        # Rank 0 removes the folder once it has published, for which all had to be done.
        while self.folder.is_dir() and not all(map(self._is_done, range(self.count))):
            self.check()
            time.sleep(_POLL_SECONDS)
        self.close()
        self._touch_left()  # from here on nobody waits for this rank
        if self.rank > 0:
            return []
        deadline = time.monotonic() + _BLOCKED_SECONDS
        while not all(map(self._gone, self._others)):
            if time.monotonic() > deadline:
                break  # its rows are committed, whatever becomes of it
            time.sleep(_POLL_SECONDS)
        all_counts = [self._read("done", rank) for rank in range(self.count)]
        if lost := [str(rank) for rank, numbers in enumerate(all_counts) if numbers is None]:
            log.warning(
                "The counts of rank%s %s cannot be read: they count as 0",
                "s" if len(lost) > 1 else "",
                listed(lost),
            )
        return [numbers or {} for numbers in all_counts]

    def _is_done(self, rank: int) -> bool:
        return self._file("done", rank).exists()

    def fail(self, message: str, code: int) -> None:
        """Leave the marker that ends the other ranks' loops."""
        self._mark(f"rank {self.rank}: {message}", code)

    def leave(self, hurry: Callable[[], bool]) -> bool:
        """Wait until all ranks are on their way out, and end those that do not react.

        Args:
            hurry: Tells whether a second signal asks to wait no longer. Ranks that it has not
                reached end by the marker, or since they miss rank 0.

        Returns:
            Whether all of them reacted.
        """
        self._computing = False
        self.close()
        if self.count == 1:
            return True
        self._touch_left()
        self._end(self._stalled)
        began = time.monotonic()
        while not rank_0_is_gone() and (late := {r for r in self._others if not self._gone(r)}):
            if late <= self._stalled:
                return False
            waited = time.monotonic() - began
            if hurry() and waited > _HURRY_SECONDS:
                return False
            if waited > _LEAVE_SECONDS:
                self._end(late - self._stalled)
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def _end(self, ranks: set[int]) -> None:
        """Kill ranks that do not react, as far as they are this rank's relatives."""
        for rank in ranks:
            log.error("Rank %d ends rank %d, which does not react", self.rank, rank)
            if rank in self._children:
                self._children[rank].kill()
            elif rank == 0:
                kill_rank_0()

    def close(self) -> None:
        """Stop the watching thread."""
        self._over.set()

    def _gone(self, rank: int) -> bool:
        child = self._children.get(rank)
        if child is not None and child.poll() is not None:
            return True
        # Rank 0 removes the folder once all have left.
        return self._file("left", rank).exists() or not self.folder.is_dir()

    def _watch(self) -> None:
        """End this process if its own loop hangs; a thread, so that it always can."""
        since = None
        while not self._over.wait(0.5):
            now = time.monotonic()
            silent = now - self._last_progress
            if self._computing and silent > self.stall_seconds:
                message = f"rank {self.rank} stalled: no progress for {silent:.0f} s"
                self._mark(message, 1)
                self._end_here(_Failure(message, 1))
            # While packs are computed the loop itself looks, and commits before it leaves.
            failure = None if self._computing else self._marked_failure()
            since = None if failure is None else since or now
            if failure and since and now - since > _BLOCKED_SECONDS:
                self._end_here(failure)

    def _end_here(self, failure: _Failure) -> None:
        log.error("%s; rank %d ends, too", failure.message, self.rank)
        self._touch_left()
        outlive_rank_0()
        os._exit(failure.code)

    # Files ------------------------------------------------------------------------------------

    def _mark(self, message: str, code: int) -> None:
        if self.count == 1 or not self.folder.is_dir():
            return
        try:
            write_json(self._file("failed"), {"message": message, "code": code}, durable=False)
        except OSError as error:  # a name needs no room on a full disk
            log.error("%s; and it cannot be told to the other ranks: %s", message, error)
            with contextlib.suppress(OSError):
                self._file("failed").touch()

    def _touch_left(self) -> None:
        # Rank 0 has cleaned up already, or the disk takes nothing any more: that was told before.
        with contextlib.suppress(OSError):
            self._file("left").touch()

    def _file(self, kind: str, rank: int | None = None) -> Path:
        return self.folder / f"rank-{self.rank if rank is None else rank}.{kind}"

    def _read(self, kind: str, rank: int) -> dict[str, Any] | None:
        path = self._file(kind, rank)
        try:
            content: dict[str, Any] = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError):  # replaced while it was read, on a network; or no room for it
            blank = {"message": f"rank {rank} failed", "code": 1}
            return blank if kind == "failed" else None
        return content
