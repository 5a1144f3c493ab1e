"""What a run tells about itself: a heartbeat in the log, and `<output>.run.json` at its end."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torchmetrics import SumMetric

from virnucpro_pl.output.files import write_json

__all__ = ["Heartbeat", "RunReport"]

log = logging.getLogger(__name__)


class RunReport:
    """Counts of one rank, and the wall time of each phase.

    Attributes:
        counts: Records, tokens, packs and failures of this rank.
        resumed: Records that an earlier run had committed.
    """

    def __init__(self) -> None:
        """Start the clock of the first phase, which ends when rows are computed."""
        self.counts = {"records": 0, "tokens": 0, "packs": 0, "failures": 0}
        self.resumed = 0
        self._seconds: dict[str, float] = {}
        self._phase = "prepare"
        self._first_tokens = 0
        self._began = time.monotonic()

    def begin(self, phase: str) -> None:
        """End one phase and start the next."""
        now = time.monotonic()
        self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now - self._began
        self._phase, self._began = phase, now

    def count(self, **more: int) -> None:
        """Add to the counts."""
        for name, number in more.items():
            self.counts[name] += number

    def packed(self, records: int, tokens: int, failures: int = 0) -> None:
        """Count one pack; the first ends the phase in which layers are compiled."""
        self.count(records=records, tokens=tokens, packs=1, failures=failures)
        if self._phase == "first pack":
            self._first_tokens = tokens
            self.begin("compute")

    def reduce(self, trainer: Trainer) -> dict[str, int]:
        """Sum the counts over all ranks; a collective, so every rank must call it."""
        totals = {}
        for name, number in self.counts.items():
            metric = SumMetric().set_dtype(torch.float64).to(trainer.strategy.root_device)
            metric.update(torch.tensor(number, dtype=torch.float64))
            totals[name] = int(metric.compute())
        return totals

    def write(
        self,
        output: Path,
        trainer: Trainer,
        totals: dict[str, int],
        per_rank: list[dict[str, int]],
        provenance: dict[str, Any],
    ) -> None:
        """Write `<output>.run.json` and the log's last line."""
        self.begin("done")
        speed = self._tokens_per_second(totals["tokens"], len(per_rank))
        budget = trainer.datamodule.tokens_per_batch  # type: ignore[attr-defined]
        fill = totals["tokens"] / (budget * totals["packs"]) if totals["packs"] else 0.0
        content = {
            "output": str(output),
            "totals": totals,
            "per_rank": per_rank,
            "failure_rate": totals["failures"] / max(totals["records"], 1),
            "resumed_records": self.resumed,
            "tokens_per_second": round(speed, 1),
            "pack_fill": round(fill, 4),
            "seconds": {phase: round(value, 3) for phase, value in self._seconds.items()},
            "devices": trainer.world_size,
            "device": str(trainer.strategy.root_device.type),
            "python_version": platform.python_version(),
            **provenance,
        }
        write_json(output.with_name(f"{output.name}.run.json"), content)
        log.info(
            "%d records (%d of them committed before), %d tokens at %.0f tokens/s, packs %.0f %% "
            "full, precision %s, attention %s",
            *(totals["records"] + self.resumed, self.resumed, totals["tokens"], speed, 100 * fill),
            *(provenance["precision"], provenance["attention"]),
        )

    def _tokens_per_second(self, tokens: int, ranks: int) -> float:
        """Throughput after each rank's first pack, or with it where there was no other."""
        seconds = self._seconds.get("compute", 0.0)
        later = tokens - ranks * self._first_tokens
        if later > 0 and seconds > 0:
            return later / seconds
        seconds += self._seconds.get("first pack", 0.0)
        return tokens / seconds if seconds else 0.0


class Heartbeat:
    """One log line every 30 s, for output to a file, where a progress bar says nothing."""

    SECONDS = 30.0

    def __init__(self, records: int, resumed: int) -> None:
        """Start the clock.

        Args:
            records: Records of the input.
            resumed: Records that an earlier run had committed.
        """
        self.records = records
        self.resumed = resumed
        self._began = self._last = time.monotonic()

    def beat(self, totals: Callable[[], dict[str, int]]) -> None:
        """Log a line if it is time.

        Args:
            totals: Gives the counts of all ranks together.
        """
        now = time.monotonic()
        if now - self._last < self.SECONDS:
            return
        self._last = now
        counts = totals()
        here = counts.get("records", 0)
        done = here + self.resumed
        left = (self.records - done) * (now - self._began) / here if here else float("inf")
        log.info(
            "%d of %d records, %.0f tokens/s, %s left",
            *(done, self.records, counts.get("tokens", 0) / (now - self._began)),
            _duration(left),
        )


def _duration(seconds: float) -> str:
    if seconds < 86_400:
        return time.strftime("%H:%M:%S", time.gmtime(seconds))
    return f"{seconds / 86_400:.1f} days"
