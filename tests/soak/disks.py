"""Disks that are full, fail, lie or forget, while a run works on them; then a healthy one.

What the disk does is done by `shim.c`, below Python, HDF5 and torch, or is real: a small tmpfs
where this process may mount one, and a limit to the size of files. After each: exit 0 and a right
output, or another promised code, a message, no traceback and no wrong output; then the same command
on the healthy disk leaves the output of an undisturbed run, bit by bit.
"""

import errno
import random
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.soak import shim
from tests.soak.cases import Case, draw_case
from tests.soak.processes import descendants, signal_all
from tests.soak.trials import END_SECONDS, LEAVE_SECONDS, Trial, tail
from tests.soak.warm import COMMAND, TORCHRUN, Attempt, Setting

_ERRORS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.EROFS, errno.EACCES)
_ANY = shim.CHANGES | shim.SYNC


def trial(seed: int, folder: Path) -> dict[str, Any]:
    """Run a case on a bad disk, then on a healthy one, and compare."""
    chance = random.Random(f"disks {seed}")
    kinds: dict[str, int] = {
        "full": 4,
        "fails": 6,
        "short": 2,
        "read_only": 2,
        "unread": 3,
        "late": 1,
        "unseen": 2,
        "limit": 2,
        "tmpfs": 2,
        "clock": 2,
        "damaged": 5,
        "manifest": 1,
    }
    if not shim.loaded():
        kinds = {name: kinds[name] for name in ("limit", "tmpfs")}
    kind = chance.choices(list(kinds), list(kinds.values()))[0]
    with_parts = kind in ("damaged", "manifest", "clock")
    command = None
    if with_parts:
        command = chance.choice(("esm2", "dnabert_s", "virnucpro", "classify"))
    return Disks(draw_case(chance, command), chance, folder).run(kind)


class Disks(Trial):
    """A case that is run on a bad disk."""

    def run(self, kind: str) -> dict[str, Any]:
        """Do it: what was done, and what was wrong."""
        self.tries = 1
        do: Callable[[], list[str]] = getattr(self, kind)
        found = do()
        if not found and not self.output.exists():
            found = self.finish()
        return self.result(found)

    # Disks by the library that is preloaded ---------------------------------------------------

    def full(self) -> list[str]:
        """There is room for so many bytes."""
        size = sum(path.stat().st_size for path in self.reference.rglob("*") if path.is_file())
        room = int(self.chance.uniform(0, 1) ** 2 * 2 * size)
        name, patterns = self.chance.choice((("all", ""), ("parts", "part-"), ("merge", "half-")))
        rule = shim.Rule(patterns, shim.WRITE, 0, shim.FOREVER, shim.FULL, room)
        return self.on_disk(rule, f"room for {room} bytes ({name})")

    def fails(self) -> list[str]:
        """A call fails: one, some, or all from there on."""
        ranks, how, workers = self.draw_launch()
        window, patterns, operations, first = self.draw_window(ranks)
        last = first + self.chance.choice((0, 0, 1, 3, shim.FOREVER))
        number = self.chance.choice(_ERRORS)
        rule = shim.Rule(patterns, operations, first, last, shim.FAIL, number)
        what = f"{errno.errorcode[number]} at call {first} to {last} in {window}"
        return self.on_disk(rule, what, (ranks, how, workers))

    def read_only(self) -> list[str]:
        """From a call on nothing can be changed any more."""
        first = self.chance.randrange(self.count_calls(shim.CHANGES)["any"][0])
        rule = shim.Rule("", shim.CHANGES, first, shim.FOREVER, shim.FAIL, errno.EROFS)
        return self.on_disk(rule, f"read-only from call {first} on")

    def short(self) -> list[str]:
        """Half of each write is made, which is no error."""
        last = self.chance.choice((0, 2, 10, shim.FOREVER))
        first = self.chance.randrange(60)
        rule = shim.Rule("", shim.WRITE, first, first + last, shim.SHORT)
        return self.on_disk(rule, f"short writes {first} to {first + last}", must_do=True)

    def unread(self) -> list[str]:
        """What is read cannot be: inputs, weights, or what the run itself has written."""
        number, last = errno.EIO, self.chance.choice((0, shim.FOREVER))
        if self.chance.random() < 0.4:
            first = self.chance.randrange(12)
            names = ("proteins", "dna.fna", "contigs", "esm2.pt", "dnabert_s", "classifier", "pair")
            name = self.chance.choice(("", *names))
            rule = shim.Rule(name, shim.READ, first, first + last, shim.FAIL, number)
            what = f"EIO at read {first} to {first + last} of {name or 'inputs'}"
            return self.on_disk(rule, what, below=self.shared / "materials")
        first = self.chance.randrange(self.count_calls(shim.READ)["any"][0])
        rule = shim.Rule("", shim.READ, first, first + last, shim.FAIL, number)
        return self.on_disk(rule, f"EIO at read {first} to {first + last}")

    def late(self) -> list[str]:
        """Each renaming takes a while."""
        milliseconds = self.chance.randrange(20, 400)
        rule = shim.Rule("", shim.RENAME, 0, shim.FOREVER, shim.LATE, milliseconds)
        return self.on_disk(rule, f"renames take {milliseconds} ms", must_do=True)

    def unseen(self) -> list[str]:
        """What another process has written is seen a while later, as on a network."""
        milliseconds = self.chance.randrange(20, 1500)
        name, patterns = self.chance.choice((("ranks", "/ranks/"), ("parts", ".parts")))
        rule = shim.Rule(patterns, shim.READ, 0, -1, shim.UNSEEN, milliseconds)
        launch = (self.chance.choice((2, 3)), TORCHRUN, 0)
        launch = (1, TORCHRUN, 0) if self.case.command == "fit" else launch
        return self.on_disk(rule, f"{name} are seen after {milliseconds} ms", launch)

    # Real ones --------------------------------------------------------------------------------

    def limit(self) -> list[str]:
        """Files may only be so large."""
        size = self.chance.choice((1, 3, 8, 20, 50, 200)) * self.chance.randrange(500, 1500)
        launch = self.draw_launch()
        launch = (launch[0], TORCHRUN, launch[2]) if launch[1] == COMMAND else launch
        return self.on_disk(None, f"files of {size} bytes at most", launch, file_bytes=size)

    def tmpfs(self) -> list[str]:
        """A file system that is too small, and then larger."""
        kilobytes = self.chance.randrange(20, 400)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(self.folder)]
        if subprocess.run(mount, check=False, capture_output=True).returncode:
            self.done.append("no tmpfs: this user may not mount one")
            return self.finish()
        try:
            found = self.on_disk(None, f"a tmpfs of {kilobytes} kB")
            larger = ["mount", "-o", "remount,size=100m", str(self.folder)]
            subprocess.run(larger, check=True)
            if not found and not self.output.exists():
                found = self.finish()
        finally:
            kept = [path.read_bytes() for path in self.folder.glob("*.log")]
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)
        (self.folder / "all.log").write_bytes(b"\n".join(kept))
        return self.result_of_tmpfs(found)

    def result_of_tmpfs(self, found: list[str]) -> list[str]:
        """Say that the output was there: it went with the file system."""
        if not found:
            self.output = self.folder
        return found

    # What is there already --------------------------------------------------------------------

    def clock(self) -> list[str]:
        """The clock goes back between two runs, or between ranks."""
        self.interrupt()
        if self.output.exists():
            return []
        seconds = self.chance.choice((0.5, 3600, 1e6, 1e9))
        ranks, how, workers = self.draw_launch()
        settings = {
            rank: Setting(
                seconds_back=seconds * self.chance.choice((0, 1)), gives_receipts=self.receipts
            )
            for rank in range(ranks)
        }
        self.done.append(f"{ranks} by {how}: the clock goes back by {seconds:g} s")
        return self.attempt(settings, ranks, how, workers, must_do=True)

    def damaged(self) -> list[str]:
        """Committed parts, receipts or the half-made file are damaged between two runs."""
        self.goes_on = False
        self.interrupt()
        parts = self.folder / f"{self.output.name}.parts"
        names = ("part-*.h5", "receipt-*.h5", "half-made.h5")
        files = sorted(path for name in names for path in parts.glob(name))
        for path in self.chance.sample(files, min(len(files), self.chance.randint(1, 4))):
            how = self.chance.choice(("flipped", "cut", "emptied", "swapped", "doubled", "removed"))
            self.damage(path, how)
            self.done.append(f"{path.name.partition('-')[0]} {how}")
        return []

    def damage(self, path: Path, how: str) -> None:
        """Do something bad to a file."""
        data = bytearray(path.read_bytes())
        match how:
            case "flipped":
                for _ in range(self.chance.choice((1, 1, 5))):
                    data[self.chance.randrange(len(data))] ^= 1 << self.chance.randrange(8)
                path.write_bytes(data)
            case "cut":
                path.write_bytes(data[: self.chance.randrange(len(data))])
            case "emptied":
                path.write_bytes(b"")
            case "swapped":
                path.write_bytes(self.strange_part().read_bytes())
            case "doubled":
                shutil.copy(path, path.with_name(path.name.replace(".h5", "0.h5")))
            case "removed":
                path.unlink()

    def strange_part(self) -> Path:
        """A part of a run of the same command with other weights or input."""
        other = self.folder / "other"
        if not other.exists():
            other.mkdir()
            self.interrupt(self.case.changed(), other)
        return self.chance.choice(sorted(other.glob("*.parts/part-*.h5")))

    def manifest(self) -> list[str]:
        """The manifest is damaged: the next run says that only starting over helps."""
        self.interrupt()
        path = self.folder / f"{self.output.name}.parts" / "manifest.json"
        if not path.exists():
            return []
        data = path.read_bytes()
        data = self.chance.choice((b"", data[: len(data) // 2], b"null\n", b"[1]\n", b"\xff\xfe"))
        path.write_bytes(data)
        self.done.append(f"a manifest of {len(data)} bytes")
        ranks, how, workers = self.draw_launch()
        found = self.attempt({}, ranks, how, workers)
        if not found and not self.output.exists():
            self.overwrite, self.goes_on = True, False
        return found

    def interrupt(self, case: Case | None = None, folder: Path | None = None) -> None:
        """Leave the parts of a run that was killed."""
        calls = (self.reference / "events").read_text().splitlines()
        renamed = sum(line.startswith(f"{shim.RENAME}\t") and "part-" in line for line in calls)
        number = self.chance.randrange(1, max(2, renamed)) if case is None else 0
        rule = shim.Rule("part-", shim.RENAME, number, number, shim.AFTER, signal.SIGKILL, True)
        words = [*(case or self.case).words(self.shared)]
        words += self.case.running(workers=0, commit_seconds=0.05)
        setting = Setting(rule, gives_receipts=self.receipts and case is None)
        attempt = Attempt(words, folder or self.folder, settings={0: setting})
        attempt.wait(END_SECONDS)
        if case is None:
            self.done.append(f"killed after part {number}")

    # One run ----------------------------------------------------------------------------------

    def on_disk(
        self,
        rule: shim.Rule | None,
        what: str,
        launch: tuple[int, str, int] | None = None,
        *,
        below: Path | None = None,
        file_bytes: int = 0,
        must_do: bool = False,
    ) -> list[str]:
        """Run on a bad disk, on one rank of the run or on all; what is wrong."""
        ranks, how, workers = launch or self.draw_launch()
        bad = range(ranks) if self.chance.random() < 0.6 else [self.chance.randrange(ranks)]
        if how == COMMAND:
            bad = [0]
        settings = {
            rank: Setting(
                rule if rank in bad else None,
                below,
                file_bytes=file_bytes,
                gives_receipts=self.receipts,
            )
            for rank in range(ranks)
        }
        self.done.append(f"{ranks} by {how}, {workers} workers: {what} on {list(bad)}")
        return self.attempt(settings, ranks, how, workers, must_do=must_do)

    def attempt(
        self,
        settings: dict[int, Setting],
        ranks: int,
        how: str,
        workers: int,
        *,
        must_do: bool = False,
    ) -> list[str]:
        """Run once; what is wrong."""
        attempt = Attempt(
            self.words(workers, 600), self.folder, how=how, ranks=ranks, settings=settings
        )
        if not attempt.wait(END_SECONDS):
            signal_all(left := descendants(), signal.SIGUSR1)
            attempt.wait(1)
            return [f"{left} are still running after {END_SECONDS} s", tail(attempt.log)]
        left = attempt.wait_for_nobody(LEAVE_SECONDS)
        found = [f"processes {left} are left"] if left else []
        codes, log = attempt.codes, attempt.log
        failed = any(codes.values())
        self.hits += failed
        told = {143, -signal.SIGTERM, -signal.SIGKILL} if ranks > 1 else set()  # by torchrun
        if set(codes.values()) - {0, 1, 2} - told:
            found.append("ended with a code that nobody promised")
        if failed and must_do:
            found.append("nothing was wrong, and it failed")
        if failed and not any(word in log for word in (" ERROR ", "rror:", "cannot")):
            found.append("it does not say what was wrong")
        if "Traceback" in log or "terminate called" in log:
            found.append("the log has a traceback")
        if self.output.exists():
            found += self.case.differences(self.output, self.reference)
        elif not failed:
            found.append("all ranks ended with 0, and there is no output")
        return found + ([f"codes {codes}", tail(log)] if found else [])
