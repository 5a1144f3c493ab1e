"""Runs that are killed, stopped and told to leave, again and again, until one may finish.

Each try is of other ranks, launched in another way, and ended at a moment of another kind: at a
call of the system within one of the windows of a run (records, manifest, parts, receipts, merge,
ranks' files, publishing, clearing up), before, behind or in the middle of it, or at any time of its
life. After each: the exit codes that are promised, no process left, no traceback, no output or a
right one, no committed row lost. At the end the output is that of an undisturbed run, bit by bit.
"""

import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

from tests.soak import shim
from tests.soak.cases import Case, draw_case
from tests.soak.processes import descendants, signal_all
from tests.soak.trials import END_SECONDS, LEAVE_SECONDS, Trial, tail
from tests.soak.warm import COMMAND, LIGHTNING, Attempt, Setting

STALL_SECONDS = 4
_STARTUP = 0.35
"""Share of a run's time before its first pack, roughly; there is less to hit there."""


class Kill(NamedTuple):
    """How a try is ended."""

    number: int
    """The signal."""
    whom: str
    """`all`, `worker`, or the number of a rank."""
    at: float | shim.Rule
    """Seconds after its start, or the call of the system."""
    window: str
    again: bool = False
    """Whether SIGTERM is sent a second time."""

    def __str__(self) -> str:
        name = signal.Signals(self.number).name
        when = f"at {self.at:.2f} s" if isinstance(self.at, float) else f"in {self.window}"
        if not isinstance(self.at, float):
            how = {shim.BEFORE: "before", shim.AFTER: "after", shim.TORN: "within"}
            when += f" {how[self.at.action]} call {self.at.first}"
        return f"{name} to {self.whom} {when}{', twice' if self.again else ''}"


def trial(seed: int, folder: Path) -> dict[str, Any]:
    """Kill a run of a case several times, let it finish, and compare."""
    chance = random.Random(f"kills {seed}")
    return Kills(draw_case(chance), chance, folder).run()


class Kills(Trial):
    """A case that is killed until it may finish; at times it replaces an older output."""

    older: Case | None = None

    def __init__(self, case: Case, chance: random.Random, folder: Path) -> None:
        super().__init__(case, chance, folder)
        if chance.random() < 0.15:
            self.older, self.overwrite, self.goes_on = case.changed(), True, False
            before = self.older.reference(self.shared) / case.output
            copy = shutil.copytree if before.is_dir() else shutil.copy
            copy(before, self.output)
            self.done.append("over an older output")

    @property
    def is_over(self) -> bool:
        """Whether the output is there, and not the older one."""
        return self.output.exists() and not (
            self.older and self.case.differences(self.output, self.reference)
        )

    def run(self) -> dict[str, Any]:
        """Do it: what was done, and what was wrong."""
        for _ in range(self.chance.randint(3, 7)):
            ranks, how, workers = self.draw_launch()
            kill = self.draw_kill(ranks, how, workers)
            if kill is None:
                continue
            self.done.append(f"{ranks} by {how}, {workers} workers: {kill}")
            if found := self.disturb(kill, ranks, how, workers):
                return self.result(found)
            if self.is_over:
                break
        return self.result([] if self.is_over else self.finish())

    # What is drawn ----------------------------------------------------------------------------

    def is_older(self) -> bool:
        """Whether the older output is there, as it was."""
        assert self.older is not None
        reference = self.older.reference(self.shared)
        return not self.older.differences(self.output, reference)

    def draw_kill(self, ranks: int, how: str, workers: int) -> Kill | None:
        """How this try is ended."""
        chance = self.chance
        if workers and chance.random() < 0.5:
            return Kill(signal.SIGKILL, "worker", self.draw_moment(how), "")
        number = chance.choices((signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP), (70, 20, 10))[0]
        whom = chance.choice(("all", *map(str, range(ranks)), "0"))
        again = number == signal.SIGTERM and chance.random() < 0.3
        if number == signal.SIGSTOP or not shim.loaded() or chance.random() < 0.35:
            return Kill(number, whom, self.draw_moment(how), "", again)
        window, rule = self.draw_call(number, whom, ranks)
        return Kill(number, whom, rule, window, again)

    def draw_moment(self, how: str) -> float:
        """Seconds from the start, most of them where there is most to hit."""
        life = self.seconds + (5.0 if how == COMMAND else 0.0)
        late = self.chance.random() < 0.8
        return self.chance.uniform(_STARTUP * life if late else 0.0, 1.2 * life)

    def draw_call(self, number: int, whom: str, ranks: int) -> tuple[str, shim.Rule]:
        """A call of the system, from those of an undisturbed run: each window is as likely."""
        window, patterns, operations, first = self.draw_window(ranks)
        action = self.chance.choice((shim.BEFORE, shim.AFTER, shim.TORN))
        if number != signal.SIGKILL and action == shim.TORN:
            action = shim.BEFORE
        if action == shim.TORN and window not in ("publish", "clear"):
            operations = shim.WRITE
        group = whom == "all"
        return window, shim.Rule(patterns, operations, first, first, action, number, group)

    # One try ----------------------------------------------------------------------------------

    def disturb(self, kill: Kill, ranks: int, how: str, workers: int) -> list[str]:
        """Run it, end it, and look at what is left; what is wrong."""
        self.tries += 1
        before = self.committed()
        settings = {}
        victim = 0 if kill.whom in ("all", "worker") else int(kill.whom)
        for rank in range(ranks):
            rule = kill.at if rank == victim and isinstance(kill.at, shim.Rule) else None
            settings[rank] = Setting(rule, gives_receipts=self.receipts)
        stall_seconds = STALL_SECONDS if kill.number == signal.SIGSTOP else 600
        attempt = Attempt(
            self.words(workers, stall_seconds),
            self.folder,
            how=how,
            ranks=ranks,
            settings=settings,
        )
        is_sent = True
        if isinstance(kill.at, float):
            is_sent = self.send(kill, attempt)
        elif kill.again:
            attempt.wait(END_SECONDS if not attempt.wait(self.seconds) else 0)
        if not attempt.wait(END_SECONDS):
            signal_all(left := descendants(), signal.SIGUSR1)  # it has them write their stacks
            time.sleep(1)
            return [f"{left} are still running after {END_SECONDS} s", tail(attempt.log)]
        left = attempt.wait_for_nobody(LEAVE_SECONDS)
        found = [f"processes {left} are left"] if left else []
        found += self.judge(kill, attempt, before)
        if not is_sent and any(attempt.codes.values()):
            found.append("nothing was done to it, and it failed")
        return found + ([f"codes {attempt.codes}", tail(attempt.log)] if found else [])

    def send(self, kill: Kill, attempt: Attempt) -> bool:
        """Send the signal at its time; wake up again who was stopped. Whether it met anybody."""
        assert isinstance(kill.at, float)
        if attempt.wait(kill.at):
            return False
        victims = self.victims(kill, attempt)
        signal_all(victims, kill.number)
        if kill.again:
            attempt.wait(self.chance.uniform(0, 1))
            again = self.victims(kill, attempt)
            signal_all(again, kill.number)
            victims += again
        if kill.number == signal.SIGSTOP:
            attempt.wait(STALL_SECONDS + self.chance.uniform(1, 4))
            signal_all(descendants(), signal.SIGCONT)
        return bool(victims)

    def victims(self, kill: Kill, attempt: Attempt) -> list[int]:
        """Whom it is for."""
        if kill.whom == "all":
            return descendants()
        if kill.whom == "worker":
            return attempt.workers()[:1]
        pid = attempt.rank(int(kill.whom))
        return [] if pid is None else [pid]

    # What is found ----------------------------------------------------------------------------

    def judge(self, kill: Kill, attempt: Attempt, before: set[int]) -> list[str]:
        """What is wrong with exit codes, log, output and parts."""
        codes, found = attempt.codes, []
        ends_well = not any(codes.values())
        self.hits += not ends_well
        allowed = {0, 1, 130, 143, -signal.SIGKILL}
        if kill.number == signal.SIGTERM:  # before the command takes it over, or after its end
            allowed |= {-signal.SIGTERM}
        if len(codes) > 1:  # by torchrun, of which another rank was killed
            allowed |= {-signal.SIGTERM}
        if set(codes.values()) - allowed:
            found.append("ended with a code that nobody promised")
        asked = kill.number == signal.SIGTERM and kill.whom in ("all", "0")
        promised = {0, 143, -signal.SIGTERM}
        if attempt.how == LIGHTNING and "SIGTERM: " not in attempt.log:
            # A rank died of it while Python began, and Lightning killed rank 0, which waited there.
            promised |= {-signal.SIGKILL}
        if asked and codes[0] not in promised:
            found.append(f"rank 0 was asked to leave and ended with {codes[0]}")
        if "Traceback" in attempt.log or "terminate called" in attempt.log:
            found.append("the log has a traceback")
        replaced = self.folder / f"{self.output.name}.parts" / "replaced"
        if ends_well and not self.is_over:
            found.append("all ranks ended with 0, and there is no new output")
        if self.output.exists():
            if not (self.older and self.is_older()):
                found += self.case.differences(self.output, self.reference)
        elif self.older:
            found += (
                [] if replaced.exists() else ["there is neither the older output nor a new one"]
            )
        elif lost := before - self.committed():
            found.append(f"committed rows are lost: {sorted(lost)[:20]}")
        return found
