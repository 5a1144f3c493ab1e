"""Who launched this process, and how long it outlives whom.

Lightning's own launcher makes the other ranks of a node child processes of rank 0; torchrun and
Slurm start every rank themselves.
"""

from __future__ import annotations

import atexit
import functools
import os
import signal
import threading
import time

_RANK_0 = "VIRNUCPRO_PL_RANK_0"
"""Environment variable that tells child processes the process id of rank 0."""
ORPHAN_SECONDS = 10.0
"""How long a rank whose launcher has died may take to commit."""
_OUTLIVE_SECONDS = 20.0
"""How long a failed rank waits for rank 0, which may know nothing of it until they have met."""


def announce_rank_0() -> None:
    """Let the ranks that Lightning will launch know their launcher; call before it does."""
    if "LOCAL_RANK" not in os.environ:
        os.environ[_RANK_0] = str(os.getpid())


def launched_by_rank_0() -> bool:
    """Tell whether Lightning's own launcher made this process, as a child of rank 0."""
    external = "TORCHELASTIC_RUN_ID" in os.environ
    return not external and _RANK_0 in os.environ and os.environ.get("LOCAL_RANK", "0") != "0"


def rank_0_is_gone() -> bool:
    """Tell whether the rank 0 that launched this process has died."""
    return launched_by_rank_0() and os.getppid() != int(os.environ[_RANK_0])


def outlive_rank_0() -> None:
    """Wait for rank 0 to exit first: Lightning kills it when it sees a child that failed."""
    deadline = time.monotonic() + _OUTLIVE_SECONDS
    while launched_by_rank_0() and not rank_0_is_gone() and time.monotonic() < deadline:
        time.sleep(0.05)


def kill_rank_0() -> None:
    """Kill the rank 0 that launched this process."""
    if launched_by_rank_0() and not rank_0_is_gone():
        os.kill(os.getppid(), signal.SIGKILL)


def lost_another_rank(error: BaseException) -> bool:
    """Tell whether an error only says that another rank has closed its connection."""
    # torch's own class, by name: an error that comes before torch is imported needs no torch.
    if type(error).__name__ == "DistNetworkError":
        return True
    return any(words in str(error) for words in ("closed by peer", "gloo/transport/tcp"))


@functools.cache
def watch_rank_0() -> None:
    """From now on, end this process soon after the rank 0 that launched it; a thread, so it can."""

    def watch() -> None:
        while not rank_0_is_gone():
            time.sleep(0.5)
        time.sleep(ORPHAN_SECONDS)
        os._exit(1)

    if launched_by_rank_0():
        threading.Thread(target=watch, name="rank-0-watch", daemon=True).start()


@functools.cache
def close_gloo_at_exit() -> None:
    """When Python ends, close gloo's connections if there are any.

    Else its threads sometimes abort Python, whatever the exit code was to be. Lightning does the
    same for NCCL. Call it before anything can fail.
    """
    from torch import distributed  # not above: the command imports this file, and torch later

    def close() -> None:
        if not distributed.is_available() or not distributed.is_initialized():
            return
        if distributed.get_backend() == "gloo":
            distributed.destroy_process_group()

    atexit.register(close)
