"""Who launched this process, and the signals that reach it.

Lightning's own launcher makes the other ranks of a node child processes of rank 0; torchrun and
Slurm start every rank themselves.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch

log = logging.getLogger(__name__)

_RANK_0 = "VIRNUCPRO_PL_RANK_0"
"""Environment variable that tells child processes the process id of rank 0."""
_ORPHAN_SECONDS = 10.0
"""How long a rank whose launcher has died may take to commit."""
_OUTLIVE_SECONDS = 20.0
"""How long a failed rank waits for rank 0, which may know nothing of it until they have met."""
_ECHO_SECONDS = 0.3
"""Within which two signals are one wish: `timeout` and torchrun send each of theirs twice."""
_NAMES: dict[int, str] = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}


def announce_rank_0() -> None:
    """Let the ranks that Lightning will launch know their launcher; call before it does."""
    if "LOCAL_RANK" not in os.environ:
        os.environ[_RANK_0] = str(os.getpid())


def launched_by_rank_0() -> bool:
    """Tell whether Lightning's own launcher made this process, as a child of rank 0."""
    external = "TORCHELASTIC_RUN_ID" in os.environ
    return not external and _RANK_0 in os.environ and os.environ.get("LOCAL_RANK", "0") != "0"


def rank_0_is_gone() -> bool:
    """Tell whether the rank 0 that launched this process has died."""
    return launched_by_rank_0() and os.getppid() != int(os.environ[_RANK_0])


def outlive_rank_0() -> None:
    """Wait for rank 0 to exit first: Lightning kills it when it sees a child that failed."""
    deadline = time.monotonic() + _OUTLIVE_SECONDS
    while launched_by_rank_0() and not rank_0_is_gone() and time.monotonic() < deadline:
        time.sleep(0.05)


def kill_rank_0() -> None:
    """Kill the rank 0 that launched this process."""
    if launched_by_rank_0() and not rank_0_is_gone():
        os.kill(os.getppid(), signal.SIGKILL)


def lost_another_rank(error: BaseException) -> bool:
    """Tell whether an error only says that another rank has closed its connection."""
    text = str(error)
    return isinstance(error, torch.distributed.DistNetworkError) or "closed by peer" in text


@functools.cache
def watch_rank_0() -> None:
    """From now on, end this process soon after the rank 0 that launched it; a thread, so it can."""

    def watch() -> None:
        while not rank_0_is_gone():
            time.sleep(0.5)
        time.sleep(_ORPHAN_SECONDS)
        os._exit(1)

    if launched_by_rank_0():
        threading.Thread(target=watch, name="rank-0-watch", daemon=True).start()


@functools.cache
def close_gloo_at_exit() -> None:
    """When Python ends, close gloo's connections if there are any.

    Else its threads sometimes abort Python, whatever the exit code was to be. Lightning does the
    same for NCCL. Call it before anything can fail.
    """

    def close() -> None:
        group = torch.distributed
        if group.is_available() and group.is_initialized() and group.get_backend() == "gloo":
            group.destroy_process_group()

    atexit.register(close)


class Signals:
    """SIGTERM and Ctrl-C as a wish to leave, after the current pack where one is computed.

    Lightning ignores the one, exits 1 on the other, and its SIGTERM handler enters a collective.

    Attributes:
        code: Exit code that a signal has asked for.
        urgent: Whether a second signal has come.
        patient: Whether the first signal is noted only; otherwise it ends the run where it arrives.
        shielded: Whether no signal ends anything where it arrives.
        speaks: Whether this process says that a signal has come; one of a run's does.
    """

    def __init__(self) -> None:
        """Start without any signal received; nothing is installed yet."""
        self.code: int | None = None
        self.urgent = False
        self.patient = False
        self.shielded = False
        rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0"
        self.speaks = not launched_by_rank_0() and rank == "0"
        self._arrived = 0.0
        self._before: dict[int, Any] = {}

    def remember(self) -> None:
        """Keep the handlers that stand there now, to give them back; the first time only.

        Call it before Lightning sets its own: it would be given those back.
        """
        if self._before or threading.current_thread() is not threading.main_thread():
            return
        handlers = {number: signal.getsignal(number) for number in _NAMES}
        # A handler that is not Python's cannot be given back, and so stays.
        self._before = {n: handler for n, handler in handlers.items() if handler is not None}

    def install(self) -> None:
        """Take both signals over; again after somebody else has set a handler."""
        self.remember()
        for number in self._before:
            signal.signal(number, self._receive)

    def restore(self) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def note(self, code: int) -> None:
        """Take a signal that somebody else has received for the first."""
        if self.code is None:
            self.code, self._arrived = code, time.monotonic()

    def check(self) -> None:
        """Leave, if a signal has asked for it.

        Raises:
            SystemExit: With 143 after SIGTERM, 130 after Ctrl-C.
        """
        if self.code is not None:
            raise SystemExit(self.code)

    def hurry(self, work: Callable[[], None]) -> None:
        """Do work that a second signal ends, or keeps from beginning; be shielded afterwards."""
        try:
            self.shielded = False
            if not self.urgent:
                work()
        except SystemExit:
            if not self.urgent:
                raise
        finally:
            self.shielded = True

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.code is not None:
            if time.monotonic() - self._arrived < _ECHO_SECONDS:
                return
            self.urgent = True
        self.note(128 + number)
        self._arrived = time.monotonic()
        waits = self.patient and not self.urgent
        what = "stopping"
        if waits:
            what = "stopping once this pack is committed; again to stop at once"
        elif self.shielded:
            what = "finishing first what is being written"
        if self.speaks:
            with contextlib.suppress(RuntimeError):  # it came in the middle of another line
                log.warning("%s: %s", _NAMES[number], what)
        if not waits and not self.shielded:
            self.shielded = self.patient  # whoever cleans up after a pack shall not be interrupted
            raise SystemExit(self.code)
