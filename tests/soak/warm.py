"""Runs of the command that begin at once: forks of a process that has imported it already.

Importing Lightning and torch takes seconds, which a thousand runs have not. A fork does what the
command does from `main` on, and ends as Python does. Several ranks come about as users make them:
by torchrun, whose part the caller plays (it sets the environment, and ends the others when a rank
fails), by Lightning's own launcher (its `Popen` then wakes a fork that has waited), or, as a check
of all this, by the real command.
"""

import atexit
import contextlib
import faulthandler
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.soak import shim
from tests.soak.processes import descendants, reap, signal_all

TORCHRUN, LIGHTNING, COMMAND = "torchrun", "lightning", "command"
_AGENT_SECONDS = 0.1
"""How often torchrun looks at its workers."""
_PATIENCE = 12.0
"""How long it waits for those that it has told to leave; its own 30 s would take all our time."""


def import_command() -> None:
    """Import all that the command imports, and compute nothing: a fork inherits no threads."""
    import virnucpro_pl.cli.fit
    import virnucpro_pl.cli.predict
    import virnucpro_pl.predict.virnucpro  # noqa: F401


def fork(work: Callable[[], int]) -> int:
    """Do work in a child process, which ends with its exit code; the child's process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        code = work()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:  # noqa: BLE001 - nothing may return into the parent's frames
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Setting(NamedTuple):
    """What is different in the process of a rank."""

    rule: shim.Rule | None = None
    """What the disk does."""
    below: Path | None = None
    """Where it does so; in the folder where the run works by default."""
    seconds_back: float = 0.0
    """How far its clock is set back."""
    file_bytes: int = 0
    """Most bytes of a file, where there is a limit (RLIMIT_FSIZE)."""
    gives_receipts: bool = False
    """Whether parts give way to receipts at once, and not at 128 MiB."""

    def apply(self, folder: Path) -> None:
        """Arrange it in this process."""
        import resource

        import virnucpro_pl.output.merge

        if self.gives_receipts:
            virnucpro_pl.output.merge.KEPT_BYTES = 0
        if self.file_bytes:
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.file_bytes, hard))
        if self.seconds_back:
            shim.set_clock_back(self.seconds_back)
        if self.rule is not None:
            shim.arm(self.below or folder, self.rule)


class Attempt:
    """One run of the command, on one or several ranks, all of one group of processes.

    Attributes:
        codes: Exit codes of the processes that this one has started, by their ranks.
        log_file: Standard output and error of all ranks.
    """

    def __init__(
        self,
        words: Sequence[object],
        folder: Path,
        *,
        how: str = TORCHRUN,
        ranks: int = 1,
        settings: Mapping[int, Setting] | None = None,
        events: Path | None = None,
    ) -> None:
        """Start it.

        Args:
            words: The command line.
            folder: Where it works.
            how: What starts the ranks.
            ranks: How many.
            settings: What is different, by rank.
            events: A file for what the single rank does to the disk.
        """
        self.words = [str(word) for word in words]
        if ranks > 1:
            self.words += ["--trainer.devices", str(ranks), "--trainer.strategy", "ddp"]
        self.folder, self.how, self.ranks = folder, how, ranks
        self.settings = settings or {}
        self.events = events
        self.codes: dict[int, int] = {}
        self.pids: dict[int, int] = {}
        self.log_file = folder / f"{time.monotonic_ns()}.log"
        self.began = time.monotonic()
        self._failed_at = 0.0
        self._sent: set[int] = set()
        {TORCHRUN: self._torchrun, LIGHTNING: self._lightning, COMMAND: self._command}[how]()

    @property
    def log(self) -> str:
        """What all ranks have said."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    # Starting ---------------------------------------------------------------------------------

    def _torchrun(self) -> None:
        port = _free_port()
        for rank in range(self.ranks):
            env = {} if self.ranks == 1 else _environment(rank, self.ranks, port)
            group = self.pids.get(0, 0)
            self.pids[rank] = pid = fork(partial(self._live, rank, env, group))
            with contextlib.suppress(OSError):  # it does so, too: who comes first does not matter
                os.setpgid(pid, group or pid)

    def _lightning(self) -> None:
        known, tell = os.pipe()
        self.pids[0] = fork(partial(self._launch, tell))
        os.close(tell)
        with os.fdopen(known) as pipe:
            self.pids |= dict(enumerate(json.loads(pipe.readline() or "[]"), start=1))

    def _launch(self, tell: int) -> int:
        """Be rank 0, with the others waiting for its launcher."""
        from lightning.pytorch.strategies.launchers import subprocess_script

        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # one that waits dies of it, as a new process
        for rank in range(1, self.ranks):
            _Waiting.ready.append(_Waiting.fork(self._live, rank))
        os.write(tell, f"{[pid for pid, _ in _Waiting.ready]}\n".encode())
        os.close(tell)
        subprocess_script.subprocess = _Launcher
        return self._live(0, {"MASTER_PORT": str(_free_port())}, 0)

    def _command(self) -> None:
        env = {**os.environ, "MASTER_PORT": str(_free_port()), "PYTHONUNBUFFERED": "1"}
        for rank, setting in self.settings.items():
            if setting.rule is not None:
                env |= shim.variables(setting.below or self.folder, setting.rule, rank)
        with self.log_file.open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "virnucpro_pl", *self.words],
                cwd=self.folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )
        self.pids[0] = process.pid
        process.returncode = 0  # it is reaped here, with all others

    def _live(self, rank: int, env: Mapping[str, str], group: int | None) -> int:
        """Be a rank, from `main` to the end of Python."""
        if group is not None:
            with contextlib.suppress(OSError):  # rank 0 may be gone by now
                os.setpgid(0, group)
        os.environ.update(env)
        os.chdir(self.folder)
        log = os.open(self.log_file, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)
        null = os.open(os.devnull, os.O_RDONLY)
        for number, descriptor in enumerate((null, log, log)):
            os.dup2(descriptor, number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        faulthandler.register(signal.SIGUSR1, all_threads=True)
        sys.argv = ["virnucpro-pl", *self.words]
        self.settings.get(rank, Setting()).apply(self.folder)
        if self.events is not None and shim.loaded():
            file = os.open(self.events, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)
            shim.arm(self.folder, shim.Rule("", 255, 0, 0, shim.NOTHING), file)
        return _run_main(self.words)

    # While it runs ----------------------------------------------------------------------------

    def look(self) -> bool:
        """Take note of who has ended, do torchrun's part, and tell whether any rank is left."""
        known = {pid: rank for rank, pid in self.pids.items()}
        for pid, code in reap().items():
            if pid in known:
                self.codes[known[pid]] = code
        mine = set(self.pids) if self.how == TORCHRUN else {0}
        now = time.monotonic()
        if self.how == TORCHRUN and any(self.codes.values()):
            self._failed_at = self._failed_at or now
            left = [pid for rank, pid in self.pids.items() if rank not in self.codes]
            for number, seconds in ((signal.SIGTERM, _AGENT_SECONDS), (signal.SIGKILL, _PATIENCE)):
                if now - self._failed_at > seconds and number not in self._sent:
                    self._sent.add(number)
                    signal_all(left, number)
        return bool(mine - set(self.codes))

    def wait(self, seconds: float) -> bool:
        """Wait so long for the end of all ranks that this process has started."""
        deadline = time.monotonic() + seconds
        while self.look():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def wait_for_nobody(self, seconds: float) -> list[int]:
        """Wait so long until no process is left at all; those that are."""
        deadline = time.monotonic() + seconds
        while (left := descendants()) and time.monotonic() < deadline:
            reap()
            time.sleep(0.02)
        reap()
        return left

    def rank(self, rank: int) -> int | None:
        """Process id of a rank, if it is known and has not ended."""
        if self.how == COMMAND and rank:
            self._find_ranks()
        return None if rank in self.codes else self.pids.get(rank)

    def workers(self) -> list[int]:
        """Processes below the ranks: those of DataLoaders."""
        if self.how == COMMAND:
            self._find_ranks()
        ranks = set(self.pids.values())
        return [pid for pid in descendants() if pid not in ranks]

    def _find_ranks(self) -> None:
        for pid in descendants(self.pids[0]):
            with contextlib.suppress(OSError, ValueError):
                pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                words = dict(pair.split(b"=", 1) for pair in pairs if b"=" in pair)
                parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
                if parent == str(self.pids[0]) and b"LOCAL_RANK" in words:
                    self.pids.setdefault(int(words[b"LOCAL_RANK"]), pid)


class _Waiting:
    """A rank that Lightning's launcher will find where it asks for a new process."""

    ready: list[tuple[int, int]] = []  # noqa: RUF012 - of one process, and changed by it

    @staticmethod
    def fork(live: Callable[[int, Mapping[str, str], None], int], rank: int) -> tuple[int, int]:
        """Fork one: its process id, and the pipe on which it waits for its environment."""
        hear, tell = os.pipe()

        def wait() -> int:
            os.close(tell)
            for _, other in _Waiting.ready:
                os.close(other)
            with os.fdopen(hear) as pipe:
                text = pipe.read()
            return live(rank, json.loads(text), None) if text else 0

        pid = fork(wait)
        os.close(hear)
        return pid, tell


class _Launcher:
    """What Lightning takes for the module `subprocess`."""

    class Popen:
        """A rank that is woken."""

        def __init__(self, command: Sequence[str], env: Mapping[str, str], cwd: None) -> None:
            self.pid, pipe = _Waiting.ready.pop(0)
            self.args, self.returncode = command, None
            with contextlib.suppress(BrokenPipeError):  # it has been killed: so be it, `poll` tells
                os.write(pipe, json.dumps(dict(env)).encode())
            os.close(pipe)

        def poll(self) -> int | None:
            """Exit code, once it has ended."""
            if self.returncode is None:
                with contextlib.suppress(ChildProcessError):
                    pid, status = os.waitpid(self.pid, os.WNOHANG)
                    if pid:
                        self.returncode = os.waitstatus_to_exitcode(status)
            return self.returncode

        def send_signal(self, number: int) -> None:
            """Send a signal, unless it has ended."""
            if self.poll() is None:
                os.kill(self.pid, number)

        def kill(self) -> None:
            """Kill it."""
            self.send_signal(signal.SIGKILL)


def _run_main(words: Sequence[str]) -> int:
    """Run the command and end what Python ends: threads, and what is to be done at exit."""
    from virnucpro_pl.__main__ import main

    code = 0
    try:
        main(words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:  # noqa: BLE001 - as Python does, with any
        traceback.print_exc()
        code = 130 if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()
    atexit._run_exitfuncs()
    return code


def _environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """The variables that torchrun sets on one node."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "ROLE_RANK": rank}
    numbers |= {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "ROLE_WORLD_SIZE": ranks}
    numbers |= {"MASTER_PORT": port, "GROUP_WORLD_SIZE": 1, "TORCHELASTIC_RESTART_COUNT": 0}
    words = {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "soak", "ROLE_NAME": "default"}
    words |= {"TORCHELASTIC_MAX_RESTARTS": "0", "TORCHELASTIC_USE_AGENT_STORE": "False"}
    return {name: str(value) for name, value in numbers.items()} | words


def _free_port() -> int:
    """A port below those that the system gives to connections, by this process's own number."""
    for step in range(1000):
        port = 20_000 + (os.getpid() * 7 + step) % 12_000
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise AssertionError("no port is free")
