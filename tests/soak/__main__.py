"""`python -m tests.soak`: trial after trial, each with a line in a log, until the time is over."""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from tests.soak import shim
from tests.soak.processes import adopt_orphans, clear_up
from tests.soak.warm import fork, import_command

PARTS = ("kills", "disks", "inputs", "weights")
TRIAL_SECONDS = 600
"""How long a trial may take before it counts as failed."""
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_MARK = "SOAK_IS_PRELOADED"


class Running(NamedTuple):
    """A trial that is under way in a process of its own."""

    part: str
    seed: int
    began: float
    folder: Path

    @property
    def result_file(self) -> Path:
        """Where it leaves what it has found."""
        return self.folder.with_suffix(".json")


def main() -> int:
    """Run what the command line asks for; 1 if a trial failed, or a part had none."""
    options = _parse()
    work = options.log.with_suffix("").absolute()
    work.mkdir(parents=True, exist_ok=True)
    _begin_again_preloaded(work)
    signal.signal(signal.SIGTERM, _stop)
    import_command()
    for part in options.parts:
        import_module(f"tests.soak.{part}")
    commit = _commit()
    earlier, failed = _read(options.log), False
    with (
        options.log.open("a", encoding="utf-8") as log,
        contextlib.closing(_trials(options, earlier, work)) as trials,
    ):
        for running, seconds, result in trials:
            line = {"part": running.part, "seed": running.seed, "commit": commit}
            line |= {"seconds": round(seconds, 2), **result}
            if options.only is None:
                log.write(json.dumps(line) + "\n")
                log.flush()
            earlier.append(line)
            failed |= not result["ok"]
            if not result["ok"]:
                _tell(running, result)
    _summarise(earlier, options.parts)
    return int(failed or {line["part"] for line in earlier} < set(options.parts))


def _tell(trial: Running, result: dict[str, Any]) -> None:
    """Print what a trial has found."""
    found = result.get("found", "")
    print(f"FAILED --parts {trial.part} --only {trial.seed}: {result['what']}")
    for item in found if isinstance(found, list) else [found]:
        print(f"    {item}", flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60, help="how long trials are begun")
    parser.add_argument("--seed", type=int, default=1, help="of the first trial of each part")
    parser.add_argument("--parts", default=",".join(PARTS), help="which, with commas between them")
    parser.add_argument("--log", type=Path, default=Path("soak.jsonl"), help="it is added to")
    parser.add_argument("--only", type=int, help="the seed of the only trial, of one part")
    parser.add_argument("--jobs", type=int, default=1, help="trials at a time")
    options = parser.parse_args()
    options.parts = options.parts.split(",")
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(unknown)}")
    if options.only is not None and len(options.parts) != 1:
        parser.error("--only is of one part: give --parts")
    return options


def _begin_again_preloaded(work: Path) -> None:
    """Become a process on one thread with the library that fails and kills, if it can be built."""
    if _MARK in os.environ:
        return
    library = shim.build(work)
    if library is None:
        print("No C compiler, or no Linux: nothing is killed at chosen calls, and no disk fails")
    env = {**os.environ, **_ONE_THREAD, _MARK: "1"}
    env |= {"LD_PRELOAD": str(library)} if library else {}
    os.execve(sys.executable, [sys.executable, "-m", "tests.soak", *sys.argv[1:]], env)


def _commit() -> str:
    """The commit of this checkout, with a mark where something is changed."""
    here = Path(__file__).parent

    def ask(*words: str) -> str:
        ended = subprocess.run(
            ["git", *words], cwd=here, capture_output=True, text=True, check=False
        )
        return ended.stdout.strip()

    changed = ask("status", "--porcelain", "--untracked-files=no", "--", "../../virnucpro_pl")
    return (ask("rev-parse", "HEAD") or "unknown") + ("+" if changed else "")


def _read(log: Path) -> list[dict[str, Any]]:
    """The trials of an earlier run; a line that was cut is none."""
    lines = []
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else []:
        with contextlib.suppress(ValueError):
            lines.append(json.loads(line))
    return lines


# Trials -------------------------------------------------------------------------------------------


def _trials(
    options: argparse.Namespace, earlier: list[dict[str, Any]], work: Path
) -> Iterator[tuple[Running, float, dict[str, Any]]]:
    """Run trials, in processes of their own; give each with its seconds and what it has found."""
    after = {
        part: max((1 + line["seed"] for line in earlier if line["part"] == part), default=0)
        for part in options.parts
    }
    seeds = {part: max(options.seed, number) for part, number in after.items()}
    spent = dict.fromkeys(options.parts, 0.0)
    running: dict[int, Running] = {}
    deadline = time.monotonic() + 60 * options.minutes
    single = options.only is not None
    if single:
        seeds[options.parts[0]] = options.only
    begun = 0
    try:
        while running or time.monotonic() < deadline:
            wanted = not (single and begun) and time.monotonic() < deadline
            while wanted and len(running) < options.jobs:
                at_work = [trial.part for trial in running.values()]
                part = min(options.parts, key=lambda p: spent[p] + 10 * at_work.count(p))
                pid, trial = _begin(part, seeds[part], work)
                running[pid] = trial
                seeds[part] += 1
                begun += 1
                wanted = not single
            if not running:
                break
            yield from _ended(running, spent)
    finally:
        for pid in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)


def _begin(part: str, seed: int, work: Path) -> tuple[int, Running]:
    folder = work / f"{part}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    trial = Running(part, seed, time.monotonic(), folder)

    def run() -> int:
        signal.signal(signal.SIGTERM, _stop)
        signal.signal(signal.SIGALRM, _too_long)
        signal.alarm(TRIAL_SECONDS)
        os.setpgid(0, 0)
        adopt_orphans()
        try:
            result = import_module(f"tests.soak.{part}").trial(seed, folder)
        except Exception:  # noqa: BLE001 - whatever it is: the trial has failed
            result = {"ok": False, "what": "broke off", "found": traceback.format_exc()}
        finally:
            clear_up()
        trial.result_file.write_text(json.dumps(result))
        return 0

    return fork(run), trial


def _stop(number: int, frame: object) -> None:
    raise SystemExit(0)


def _too_long(number: int, frame: object) -> None:
    raise TimeoutError(f"the trial took more than {TRIAL_SECONDS} s")


def _ended(
    running: dict[int, Running], spent: dict[str, float]
) -> Iterator[tuple[Running, float, dict[str, Any]]]:
    """Wait for the next trial to end."""
    pid, status = os.waitpid(-1, 0)
    trial = running.pop(pid)
    seconds = time.monotonic() - trial.began
    spent[trial.part] += seconds
    if trial.result_file.exists():
        result = json.loads(trial.result_file.read_text())
    else:
        result = {"ok": False, "what": "died", "found": f"the trial's process ended with {status}"}
    trial.result_file.unlink(missing_ok=True)
    if result["ok"]:
        shutil.rmtree(trial.folder, ignore_errors=True)
    else:
        result["folder"] = str(trial.folder)
    yield trial, seconds, result


def _summarise(lines: list[dict[str, Any]], parts: list[str]) -> None:
    """Print a table of all trials in the log."""
    print(f"{'part':10}{'trials':>10}{'cases':>10}{'failures':>10}{'hours':>10}")
    for part in parts:
        mine = [line for line in lines if line["part"] == part]
        cases = sum(line.get("count", 1) for line in mine)
        failures = sum(not line["ok"] for line in mine)
        hours = sum(line["seconds"] for line in mine) / 3600
        print(f"{part:10}{len(mine):>10}{cases:>10}{failures:>10}{hours:>10.2f}")


if __name__ == "__main__":
    sys.exit(main())
