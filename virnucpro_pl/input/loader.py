"""One rank's batches, on its device."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset


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
        """Yield the batches in order."""
        on_gpu = self.device.type == "cuda"
        loader = DataLoader(
            self.packs,
            batch_size=None,
            num_workers=min(self.workers, len(self.packs)),  # type: ignore[arg-type]
            collate_fn=_unchanged,
            pin_memory=on_gpu,
            worker_init_fn=_leave_signals_to_the_rank,
        )
        batches = (batch.to(self.device) for batch in chain.from_iterable(loader))
        return with_following(batches) if on_gpu else batches


def with_following(batches: Iterator[Any]) -> Iterator[Any]:
    """Give each batch the one behind it, so that the device never waits for the host."""
    batch = next(batches, None)
    while batch is not None:
        following = next(batches, None)
        yield batch._replace(following=following)
        batch = following


def _unchanged(batches: list[Any]) -> list[Any]:
    return batches


def _leave_signals_to_the_rank(worker: int) -> None:
    """A signal to the process group must not kill workers while the rank finishes its pack."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
