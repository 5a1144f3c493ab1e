"""Cases in a process of their own: whatever one does there, it is known and ends nothing."""

import gc
import json
import mmap
import os
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

SECONDS = 10
"""Of a processor that a case may take."""
PATIENCE = 180
"""Seconds until it is ended in any case, whatever else the machine does."""
_TOO_LONG = (signal.SIGPROF, signal.SIGALRM)


def run_cases(
    check: Callable[[int, Path], str | None], count: int, folder: Path, extra: int
) -> list[dict]:
    """Run cases one after the other, and give what was wrong with some of them.

    Args:
        check: Runs a case by its number in an empty folder; says what is wrong, if anything is.
        count: How many there are.
        folder: Where those that are wrong leave their files.
        extra: Bytes of address space that they may take beyond what this process has.
    """
    found: list[dict] = []
    reached = mmap.mmap(-1, 8)  # shared with the child
    begin = 0
    while begin < count:
        report = folder / "report"
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            _be_child(check, range(begin, count), folder, report, reached, extra)
        _, status = os.waitpid(pid, 0)
        if report.exists():
            found += [json.loads(line) for line in report.read_text().splitlines()]
            report.unlink()
        begin = count
        if status:
            case = int.from_bytes(reached[:8], "little")
            kept = _keep(folder, case)
            how = "took too long" if status & 0x7F in _TOO_LONG else f"died: {status}"
            found.append({"case": case, "found": how, "kept": kept})
            begin = case + 1
    return found


def _be_child(
    check: Callable[[int, Path], str | None],
    cases: range,
    folder: Path,
    report: Path,
    reached: mmap.mmap,
    extra: int,
) -> None:
    """Run the cases and end this process, whatever happens."""
    try:
        for number in _TOO_LONG:
            signal.signal(number, signal.SIG_DFL)
        space = _address_space() + extra
        resource.setrlimit(resource.RLIMIT_AS, (space, space))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        log = os.open(folder / "output", os.O_CREAT | os.O_RDWR | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        gc.freeze()  # what this process has by now is not looked through after each case
        with report.open("a") as lines:
            for case in cases:
                reached[:8] = case.to_bytes(8, "little")
                place = folder / "case"
                place.mkdir()
                os.ftruncate(log, 0)
                signal.setitimer(signal.ITIMER_PROF, SECONDS)
                signal.setitimer(signal.ITIMER_REAL, PATIENCE)
                try:
                    wrong = check(case, place)
                except BaseException:  # noqa: BLE001 - whatever it is, it is what was found
                    wrong = traceback.format_exc()
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.setitimer(signal.ITIMER_REAL, 0)
                gc.collect()  # what a case has mapped must not count as memory of the next
                sys.stderr.flush()
                said = os.pread(log, 100_000, 0).decode(errors="replace")
                if wrong or "Traceback" in said or "Exception ignored" in said:
                    found = f"{wrong}\n{said}"[-3000:]
                    line = {"case": case, "found": found, "kept": _keep(folder, case)}
                    lines.write(json.dumps(line) + "\n")
                    lines.flush()
                else:
                    shutil.rmtree(place)
        (folder / "output").unlink()
    except BaseException:  # noqa: BLE001 - the harness itself is wrong
        traceback.print_exc()
        os._exit(99)
    os._exit(0)


def _keep(folder: Path, case: int) -> str:
    kept = folder / f"case-{case}"
    (folder / "case").rename(kept)
    return str(kept)


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()
