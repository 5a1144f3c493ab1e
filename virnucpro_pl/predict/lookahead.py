"""Work for the device, queued one batch ahead, so that it computes while the host does the rest."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from virnucpro_pl.errors import is_out_of_memory
from virnucpro_pl.stability import are_finite

log = logging.getLogger(__name__)


class Launched(NamedTuple):
    """A batch whose work is queued on its device."""

    batch: Any
    hidden: tuple[Tensor, ...]
    """Hidden states (T, D), on the device, to tell what is not finite."""
    results: tuple[Tensor, ...]
    """What is kept of them, in pinned memory of the host from `ready` on."""
    finite: Tensor
    """() bool, whether all numbers are finite; beside the results, so that one wait does for both.
    """
    ready: torch.cuda.Event | None
    """None where the results are there by now."""

    @classmethod
    def send(cls, batch: Any, hidden: Sequence[Tensor], results: Sequence[Tensor]) -> Self:
        """Queue the stability check and the way of the results to the host."""
        finite = are_finite(*hidden, *results)
        if finite.device.type != "cuda":
            return cls(batch, tuple(hidden), tuple(r.cpu() for r in results), finite, None)
        *arriving, finite = [_pinned(tensor) for tensor in (*results, finite)]
        ready = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        ready.record()
        return cls(batch, tuple(hidden), tuple(arriving), finite, ready)

    def wait(self) -> bool:
        """Wait until the results are on the host; tell whether all numbers are finite."""
        if self.ready is not None:
            self.ready.synchronize()
        return bool(self.finite)

    def take(self) -> list[Tensor]:
        """The results, after `wait`; pinned memory is given back for a later batch's."""
        return list(self.results) if self.ready is None else [r.clone() for r in self.results]


def _pinned(tensor: Tensor) -> Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


class LooksAhead(ABC):
    """A module that queues the next batch's work before it waits for this one's results.

    On a GPU the loader hands each batch over with the one behind it, see
    `input.loader.PackLoader`; where there is none, nothing is queued ahead.
    """

    _ahead: Launched | None = None
    _looks_ahead = True

    @abstractmethod
    def launch(self, batch: Any) -> Launched:
        """Queue all work of a batch."""

    @abstractmethod
    def has_room_for(self, batch: Any) -> bool:
        """Tell whether the device has not yet been found too small for so many tokens."""

    def start_looking(self) -> None:
        """Begin a run: forget what another one has left behind."""
        self._ahead, self._looks_ahead = None, True

    def launched(self, batch: Any) -> Launched:
        """The batch's work, which is queued by now, with the next batch's behind it."""
        queued, self._ahead = self._ahead, None
        if queued is None or queued.batch.tokens is not batch.tokens:
            queued = self.launch(batch)
        if batch.following is not None and self._looks_ahead:
            self._look_ahead(batch.following)
        return queued

    def _look_ahead(self, following: Any) -> None:
        if not self.has_room_for(following):
            return
        try:
            self._ahead = self.launch(following)
        except Exception as error:  # noqa: BLE001 - its own step meets it, and tells its own ids
            self._looks_ahead = False
            why = "has no room for two packs" if is_out_of_memory(error) else f"failed: {error}"
        if not self._looks_ahead:  # out of the except clause, whose traceback holds tensors
            free_memory()
            log.warning("Nothing is queued ahead from here on: the device %s", why)


def free_memory() -> None:
    """Give memory that nobody uses back to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
