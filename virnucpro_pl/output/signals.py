"""SIGTERM and Ctrl-C as a wish to leave."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

from virnucpro_pl.output.processes import launched_by_rank_0, outlive_rank_0

log = logging.getLogger(__name__)

_ECHO_SECONDS = 0.3
"""Within which two signals are one wish: `timeout` and torchrun send each of theirs twice."""
_AGAIN_SECONDS = 0.05
"""After which a signal is sent once more that came where nothing can be raised."""
_NAMES: dict[int, str] = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}


class Signals:
    """SIGTERM and Ctrl-C as a wish to leave, after the current pack where one is computed.

    Lightning ignores the one, exits 1 on the other, and its SIGTERM handler enters a collective.

    Attributes:
        code: Exit code that a signal has asked for.
        urgent: Whether a second signal has come.
        patient: Whether the first signal is noted only; otherwise it ends the run where it arrives.
        shielded: Whether no signal ends anything where it arrives.
        abrupt: Whether a signal ends the process itself, as long as there is nothing to put away.
        speaks: Whether this process says that a signal has come; one of a run's does.
    """

    def __init__(self) -> None:
        """Start without any signal received; nothing is installed yet."""
        self.code: int | None = None
        self.urgent = False
        self.patient = False
        self.shielded = False
        self.abrupt = False
        rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0"
        self.speaks = not launched_by_rank_0() and rank == "0"
        self._arrived = 0.0
        self._before: dict[int, Any] = {}
        self._again: threading.Timer | None = None
        self._due = False
        self._hook = partial(self._ignore, sys.unraisablehook)

    def remember(self) -> None:
        """Keep the handlers that stand there now, to give them back; the first time only.

        Call it before Lightning sets its own: it would be given those back.
        """
        if self._before or threading.current_thread() is not threading.main_thread():
            return
        handlers = {number: signal.getsignal(number) for number in _NAMES}
        # A handler that is not Python's cannot be given back, and so stays.
        self._before = {n: handler for n, handler in handlers.items() if handler is not None}
        sys.unraisablehook = self._hook = partial(self._ignore, sys.unraisablehook)

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
        self._forget()
        if sys.unraisablehook is self._hook:
            [sys.unraisablehook] = self._hook.args

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
            self._forget()
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

    def _ignore(self, before: Callable[[Any], Any], ignored: sys.UnraisableHookArgs) -> None:
        """Send a signal once more that came within a `__del__` or a weak reference's callback.

        Python lets no exception out of those, and would print it.

        Args:
            before: Tells of whatever else is ignored there.
            ignored: What was raised.
        """
        if not self._before or self.code is None or ignored.exc_type is not SystemExit:
            before(ignored)
            return
        self.shielded = False  # as it was where the signal came
        self._again = threading.Timer(_AGAIN_SECONDS, self._send_again)
        self._again.daemon = True
        with contextlib.suppress(RuntimeError):  # no more threads here: `check` is left
            self._again.start()

    def _send_again(self) -> None:
        assert self.code is not None, "it has come once"
        self._arrived, self._due = time.monotonic(), True
        os.kill(os.getpid(), self.code - 128)

    def _forget(self) -> None:
        """Send nothing more: whatever the signal was to end is at its end."""
        if self._again is not None:
            self._again.cancel()
        self._due = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._due:  # known, and to raise now
            self._due = False
        elif self.code is not None and time.monotonic() - self._arrived < _ECHO_SECONDS:
            return
        else:
            self._take(number)
        waits = self.patient and not self.urgent
        if not waits and not self.shielded:
            if self.abrupt:  # within an import an exception may be caught, or printed and ignored
                outlive_rank_0()
                os._exit(128 + number)
            self.shielded = self.patient  # whoever cleans up after a pack shall not be interrupted
            raise SystemExit(self.code)

    def _take(self, number: int) -> None:
        """Note a signal, and say what follows."""
        self.urgent = self.code is not None
        self.note(128 + number)
        self._arrived = time.monotonic()
        what = "stopping"
        if self.patient and not self.urgent:
            what = "stopping once this pack is committed; again to stop at once"
        elif self.shielded:
            what = "finishing first what is being written"
        if self.speaks:
            with contextlib.suppress(RuntimeError):  # it came in the middle of another line
                log.warning("%s: %s", _NAMES[number], what)
