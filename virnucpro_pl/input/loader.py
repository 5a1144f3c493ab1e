"""One rank's batches, on its device."""

from __future__ import annotations

import atexit
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any
from weakref import WeakSet

import torch
from torch.utils.data import DataLoader, Dataset

from virnucpro_pl.errors import WorkerError

_LOST = re.compile(r"DataLoader worker \(pid")
"""How torch begins to say that a worker is gone (`torch/utils/data/dataloader.py`)."""
_SENT = "in DataLoader worker process"
"""What torch puts into an error that a worker has met and sent."""
_workers: WeakSet[BaseProcess] = WeakSet()
"""Those of this process."""


@dataclass(eq=False)
class PackLoader:
    """Iterates over one rank's batches, on its device.

    No DataLoader for Lightning to rebuild, and no length: Lightning would stop at a length that was
    planned too low, and would shard again by rules that depend on the class of the sampler.
    """

    packs: Dataset[Any]
    """The rank's packs."""
    workers: int
    """DataLoader processes."""
    device: torch.device
    """Where the batches go; on a GPU each has the one behind it with it."""

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches in order.

        Workers start when the first one is asked for: Lightning makes an iterator before, only to
        see whether it can.

        Raises:
            WorkerError: If a worker is gone, seen when the next batch is asked for.
        """
        on_gpu = self.device.type == "cuda"
        loader = DataLoader(
            self.packs,
            batch_size=None,
            num_workers=min(self.workers, len(self.packs)),  # type: ignore[arg-type]
            collate_fn=_unchanged,
            pin_memory=on_gpu,
            worker_init_fn=_leave_to_the_rank,
        )
        with _no_exception_from_signals():
            packs = iter(loader)
        workers: list[BaseProcess] = getattr(packs, "_workers", [])
        _workers.update(workers)
        batches = (batch.to(self.device) for batch in _or_lost(packs, workers))
        yield from with_following(batches) if on_gpu else batches


def with_following(batches: Iterator[Any]) -> Iterator[Any]:
    """Give each batch the one behind it, so that the device never waits for the host."""
    batch = next(batches, None)
    while batch is not None:
        following = next(batches, None)
        yield batch._replace(following=following)
        batch = following


@contextmanager
def _no_exception_from_signals() -> Iterator[None]:
    """Have the end of a worker raise where a batch is asked for, and nowhere else.

    torch's DataLoader sets a handler that raises wherever the rank is by then: in the middle of a
    commit, or while it tells of that very failure. Without one it looks itself, every few seconds.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # torch sets none here
        return
    handler = signal.getsignal(signal.SIGCHLD)
    if getattr(handler, "__module__", "").startswith("torch."):  # of an earlier loader
        handler = signal.SIG_DFL
    try:
        yield
    finally:
        if handler is not None:
            signal.signal(signal.SIGCHLD, handler)


def _or_lost(packs: Iterator[Any], workers: list[BaseProcess]) -> Iterator[Any]:
    """Give all batches of the packs; say what it means that a worker is gone."""
    try:
        yield from chain.from_iterable(packs)
    except (RuntimeError, OSError, EOFError) as error:
        if not workers or _SENT in str(error):
            raise
        # torch says so itself, unless it was just reading what the worker sent.
        if not (wait([w.sentinel for w in workers], timeout=1) or _LOST.match(str(error))):
            raise
        why = (
            "its shared memory is too small (/dev/shm; docker run --shm-size 2g)"
            if -signal.SIGBUS in [worker.exitcode for worker in workers]
            else "mostly the system ends one where memory runs out"
        )
        raise WorkerError(
            f"A process that prepares packs is gone ({str(error).rstrip()}): {why}. Give more "
            "memory, or fewer --data.num_workers, 0 for none, and run the same command again"
        ) from error


@atexit.register
def _end_workers() -> None:
    """End those that are left when Python ends, before multiprocessing waits for them.

    It sends SIGTERM, which they ignore, so that it would wait forever.
    """
    for worker in list(_workers):
        if worker.is_alive():
            worker.kill()


def _unchanged(batches: list[Any]) -> list[Any]:
    return batches


def _leave_to_the_rank(worker: int) -> None:
    """A signal to the process group must not kill workers while the rank finishes its pack.

    Nor does a worker say anything when the rank is gone; its own errors go to the rank anyhow.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.excepthook = _say_unless_lonely


def _say_unless_lonely(
    kind: type[BaseException], error: BaseException, place: TracebackType | None
) -> None:
    """Print what a thread of a worker, which sends tensors, meets; not that nobody listens."""
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, place)
