"""What trials have in common: a case, ways to run it, and what it has left."""

import random
from pathlib import Path
from typing import Any

from tests.soak import shim
from tests.soak.cases import Case
from tests.soak.warm import COMMAND, LIGHTNING, TORCHRUN, Attempt, Setting

LEAVE_SECONDS = 15.0
"""Within which nothing is left of a run that was ended."""
END_SECONDS = 60.0
"""Within which a run has ended of which a rank is dead."""
WINDOWS = {
    "records": "/records",
    "manifest": "manifest.json",
    "part": "part-",
    "receipt": "receipt-",
    "merge": "half-made|/output|esm2.h5|dnabert_s.h5",
    "ranks": "/ranks",
    "state": "state.ckpt",
    "any": "",
}
"""Pieces of the paths that a window of a run is about."""
OF_RANK_0 = ("records", "manifest", "receipt", "merge", "publish", "clear")


class Trial:
    """A case that is disturbed, and then goes on to its end.

    Attributes:
        done: What was done, for the log.
        tries: How often it was disturbed.
        hits: How often that made a difference.
        goes_on: Whether the last run finds all rows that were committed.
        overwrite: Whether it starts over, and replaces an output that is there.
    """

    goes_on = True
    overwrite = False

    def __init__(self, case: Case, chance: random.Random, folder: Path) -> None:
        self.case, self.chance, self.folder = case, chance, folder
        self.shared = folder.parent / "shared"
        self.reference = case.reference(self.shared)
        self.seconds = float((self.reference / "seconds").read_text())
        self.output = folder / case.output
        self.receipts = case.output.endswith(".h5") and chance.random() < 0.4
        self.done: list[str] = []
        self.tries = self.hits = 0

    def result(self, found: list[str]) -> dict[str, Any]:
        """What the log has of it."""
        result = {
            "ok": not found,
            "what": f"{self.case.name}{' with receipts' if self.receipts else ''}: "
            + "; ".join(self.done),
            "count": self.tries,
            "hits": self.hits,
        }
        return result | ({"found": found} if found else {})

    # What is drawn ----------------------------------------------------------------------------

    def draw_launch(self) -> tuple[int, str, int]:
        """Ranks, what starts them, and workers of each."""
        ranks = 1 if self.case.command == "fit" else self.chance.choices((1, 2, 3), (4, 4, 2))[0]
        how = self.chance.choices((TORCHRUN, LIGHTNING, COMMAND), (45, 50, 5))[0]
        if ranks == 1 and how == LIGHTNING:
            how = TORCHRUN
        workers = 0 if self.case.command == "fit" else self.chance.choices((0, 1, 2), (7, 2, 1))[0]
        return ranks, how, workers

    def draw_window(
        self, ranks: int, operations: int = shim.CHANGES | shim.SYNC
    ) -> tuple[str, str, int, int]:
        """A call of the system, from those of an undisturbed run: each window is as likely.

        Returns:
            Name of the window, pieces of its paths, its operations, and the call's number.
        """
        counts = self.count_calls(operations)
        window = self.chance.choice(sorted(counts))
        count, patterns, bits = counts[window]
        share = 1 if window in OF_RANK_0 else ranks
        return window, patterns, bits, self.chance.randrange(-(-count // share) + 1)

    def count_calls(self, among: int) -> dict[str, tuple[int, str, int]]:
        """How many calls each window has in an undisturbed run, with its pieces and operations."""
        calls = [line.split("\t") for line in (self.reference / "events").read_text().splitlines()]
        windows = {name: (patterns, among) for name, patterns in WINDOWS.items()}
        windows["publish"] = (f"/{self.output.name}", shim.RENAME)
        windows["clear"] = ("", shim.REMOVE | shim.FOLDER)
        counts = {}
        for name, (patterns, operations) in windows.items():
            pieces = patterns.split("|")
            count = sum(
                bool(int(what) & operations) and any(p in path or p in other for p in pieces)
                for what, path, other in calls
            )
            counts[name] = (count, patterns, operations)
        if self.receipts:  # the undisturbed run had none: as many as parts
            counts["receipt"] = (counts["part"][0], *counts["receipt"][1:])
        return {name: counted for name, counted in counts.items() if counted[0]}

    # Runs -------------------------------------------------------------------------------------

    def words(self, workers: int, stall_seconds: float) -> list[str]:
        """The command line of a try."""
        more = ["--writer.overwrite", "true"] if self.overwrite else []
        commit_seconds = self.chance.choice((0, 0.02, 0.1, 60))
        running = self.case.running(
            workers=workers, commit_seconds=commit_seconds, stall_seconds=stall_seconds
        )
        return [*self.case.words(self.shared), *running, *more]

    def committed(self) -> set[int]:
        """Rows that a continuation will find."""
        from virnucpro_pl.output.part_file import read_part
        from virnucpro_pl.output.parts_folder import PartsFolder

        parts = PartsFolder(self.output, overwrite=False)
        if not parts.manifest.path.exists() or self.case.command == "fit":
            return set()
        whole = filter(None, map(read_part, parts.committed()))
        return {row for part in whole for row in part.rows.tolist()}

    def finish(self) -> list[str]:
        """Let a run go on to its end; what is wrong."""
        ranks, how, workers = self.draw_launch()
        kept = self.committed()
        attempt = Attempt(
            self.words(workers, 600),
            self.folder,
            how=how,
            ranks=ranks,
            settings={rank: Setting(gives_receipts=self.receipts) for rank in range(ranks)},
        )
        self.done.append(f"{ranks} by {how}, {workers} workers: undisturbed")
        found = []
        if not attempt.wait(2 * END_SECONDS):
            found.append("an undisturbed run does not end")
        elif any(attempt.codes.values()):
            found.append("an undisturbed run failed")
        elif left := attempt.wait_for_nobody(LEAVE_SECONDS):
            found.append(f"processes {left} are left")
        elif not self.output.exists():
            found.append("an undisturbed run ended with 0, and there is no output")
        else:
            found += self.case.differences(self.output, self.reference)
            if (self.folder / f"{self.output.name}.parts").exists():
                found.append("parts are left beside the output")
            if kept and self.goes_on and f"Continuing: {len(kept)} of" not in attempt.log:
                found.append(f"{len(kept)} rows were committed, and the run did not go on there")
            if "Traceback" in attempt.log:
                found.append("the log has a traceback")
        return found + ([f"codes {attempt.codes}", tail(attempt.log)] if found else [])


def tail(log: str) -> str:
    """The end of a log, for a report."""
    return log[-4000:]
