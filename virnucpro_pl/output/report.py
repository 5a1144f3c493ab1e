"""What a run tells about itself at its end: `<output>.run.json`, and a short block in the log."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from virnucpro_pl.contracts import RowSource
from virnucpro_pl.output.atomic_files import write_json

log = logging.getLogger(__name__)


def report_file(output: Path) -> Path:
    """Name of the report that belongs to an output file or folder."""
    return output.with_name(f"{output.name}.run.json")


class RunReport:
    """Counts of one rank, and the wall time of each phase.

    Attributes:
        counts: Records, tokens as they were computed, packs and failures of this rank.
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
        self._started = datetime.now(UTC)

    def begin(self, phase: str) -> None:
        """End one phase and start the next."""
        now = time.monotonic()
        self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now - self._began
        self._phase, self._began = phase, now

    def packed(self, records: int, tokens: int, failures: int = 0) -> None:
        """Count one pack; the first ends the phase in which kernels are compiled."""
        pack = {"records": records, "tokens": tokens, "packs": 1, "failures": failures}
        for name, number in pack.items():
            self.counts[name] += number
        if self._phase == "first pack":
            self._first_tokens = tokens
            self.begin("compute")

    def add_up(self, per_rank: Sequence[dict[str, int]]) -> dict[str, int]:
        """Counts of all ranks together; what one has not told counts as 0."""
        return {name: sum(counts.get(name, 0) for counts in per_rank) for name in self.counts}

    def write(
        self,
        output: Path,
        trainer: Trainer,
        source: RowSource,
        per_rank: list[dict[str, int]],
        provenance: dict[str, Any],
        failed: int,
    ) -> None:
        """Write `<output>.run.json` and, for who asks for more, a short block in the log.

        Args:
            output: File or folder that was published.
            trainer: The Trainer of the run.
            source: Its data module.
            per_rank: Counts of each rank in this run.
            provenance: What was run.
            failed: Rows of the whole output, those of earlier runs included, that failed.
        """
        self.begin("done")
        totals = self.add_up(per_rank)
        speed = self._tokens_per_second(totals["tokens"], len(per_rank))
        room = source.tokens_per_batch * totals["packs"]
        fill = totals["tokens"] / room if room else 0.0
        content = {
            "output": str(output),
            "started": self._started.isoformat(timespec="milliseconds"),
            "totals": totals,
            "per_rank": per_rank,
            "failed_rows": failed,
            "failure_rate": failed / max(len(source.store), 1),
            "resumed_records": self.resumed,
            "input_counts": source.input_counts,
            **({"inputs": source.inputs.counts} if source.inputs else {}),
            **({"distinct": source.distinct} if source.distinct else {}),
            "tokens_per_second": round(speed, 1),
            "pack_fill": round(fill, 4),
            "seconds": {phase: round(value, 3) for phase, value in self._seconds.items()},
            "devices": trainer.world_size,
            "device": str(trainer.strategy.root_device.type),
            "python_version": platform.python_version(),
            **provenance,
        }
        write_json(report_file(output), content)
        before = f" ({self.resumed:,} more committed before)" if self.resumed else ""
        log.debug(
            "%s %s%s, %s failed: %s tokens at %s tokens/s, packs %.0f %% full",
            f"{totals['records']:,}",
            source.store.unit,
            before,
            f"{failed:,}",
            f"{totals['tokens']:,}",
            f"{speed:,.0f}",
            100 * fill,
        )
        phases = ", ".join(f"{name} {value:.1f} s" for name, value in self._seconds.items())
        precision, attention = provenance["precision"], provenance["attention"]
        log.debug("Precision %s, attention %s; %s", precision, attention, phases)

    def _tokens_per_second(self, tokens: int, ranks: int) -> float:
        """Throughput after each rank's first pack, or with it where there was no other."""
        seconds = self._seconds.get("compute", 0.0)
        later = tokens - ranks * self._first_tokens
        if later > 0 and seconds > 0:
            return later / seconds
        seconds += self._seconds.get("first pack", 0.0)
        return tokens / seconds if seconds else 0.0
