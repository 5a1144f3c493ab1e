"""What a run says while it goes on: a bar on a terminal, a log line now and then, loggers."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Sequence

from lightning.pytorch.loggers import Logger
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

log = logging.getLogger(__name__)


class RunProgress:
    """Rows done of how many, rows/s and time left, over all ranks. On rank 0 only.

    Lightning's own bar counts the batches of rank 0.
    """

    LINE_SECONDS = 30.0
    """Time between two lines of the log, which say it also where there is no terminal."""
    BAR_SECONDS = 0.5

    def __init__(
        self,
        rows: int,
        resumed: int,
        *,
        unit: str = "records",
        bar: bool = False,
        loggers: Sequence[Logger] = (),
    ) -> None:
        """Start the clock.

        Args:
            rows: Rows of the input.
            resumed: Rows that an earlier run had committed.
            unit: What a row is.
            bar: Whether to draw a bar, if standard error is a terminal.
            loggers: The Trainer's, for curves over rows done.
        """
        self.rows = rows
        self.resumed = resumed
        self.unit = unit
        self.loggers = loggers
        self._began = self._last_line = self._last_bar = time.monotonic()
        self._bar, self._task = _draw(rows, resumed, unit) if bar else (None, TaskID(0))

    def update(self, totals: Callable[[], dict[str, int]]) -> None:
        """Say how far the run is, if it is time.

        Args:
            totals: Gives the counts of all ranks together.
        """
        now = time.monotonic()
        if now - self._last_line >= self.LINE_SECONDS:
            self._last_line = now
            counts = totals()
            done = self._done(counts)
            speed, left = self._pace(counts, now)
            log.info("%d of %d %s, %s, %s", done, self.rows, self.unit, speed, left)
            self._log_metrics(counts, now)
        if self._bar is not None and now - self._last_bar >= self.BAR_SECONDS:
            self._last_bar = now
            counts = totals()
            pace = ", ".join(self._pace(counts, now))
            self._bar.update(self._task, completed=self._done(counts), pace=pace)

    def close(self, counts: dict[str, int] | None = None) -> None:
        """Remove the bar, and close the curves.

        Args:
            counts: Those of all ranks at the end of a run, if it has come to its end.
        """
        if self._bar is not None:
            self._bar.stop()
        if counts is not None:
            self._log_metrics(counts, time.monotonic())
        for logger in self.loggers:
            logger.finalize("failed" if counts is None else "success")

    def _done(self, counts: dict[str, int]) -> int:
        return counts.get("records", 0) + self.resumed

    def _pace(self, counts: dict[str, int], now: float) -> tuple[str, str]:
        here, elapsed = counts.get("records", 0), now - self._began
        left = (self.rows - self._done(counts)) * elapsed / here if here else float("inf")
        pace = here / elapsed
        speed = f"{pace:,.0f}" if pace >= 10 else f"{pace:.1f}"
        return f"{speed} {self.unit}/s", f"{_duration(left)} left"

    def _log_metrics(self, counts: dict[str, int], now: float) -> None:
        tokens, elapsed = counts.get("tokens", 0), max(now - self._began, 1e-9)
        metrics = {
            "tokens_per_second": tokens / elapsed,
            "rows": float(self._done(counts)),
            "failures": float(counts.get("failures", 0)),
            "tokens_per_pack": tokens / max(counts.get("packs", 0), 1),
        }
        for logger in self.loggers:
            logger.log_metrics(metrics, step=self._done(counts))
            logger.save()


def _draw(rows: int, resumed: int, unit: str) -> tuple[Progress | None, TaskID]:
    """A bar on standard error, above which the log goes on; none where it is no terminal."""
    if not sys.stderr.isatty():
        return None, TaskID(0)
    bar = Progress(
        BarColumn(bar_width=30),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} {task.description}"),
        TextColumn("{task.fields[pace]}"),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task(unit, total=rows, completed=resumed, pace="")
    bar.start()
    return bar, task


def _duration(seconds: float) -> str:
    if seconds == float("inf"):
        return "unknown time"
    if seconds < 86_400:
        return time.strftime("%H:%M:%S", time.gmtime(seconds))
    return f"{seconds / 86_400:.1f} days"
