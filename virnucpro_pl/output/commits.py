"""Commits finished rows from a thread, so that the next packs are computed meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch

from virnucpro_pl.output.part_file import Part


class _Pack(NamedTuple):
    rows: torch.Tensor
    ids: tuple[str, ...]
    columns: dict[str, torch.Tensor]


class Commits:
    """The rows that one rank has finished but not yet committed.

    They are held, then handed over to the thread, and forgotten once they are committed. At most
    one commit is under way. One that has failed keeps its rows, and is tried again before any
    other, with the same rows.

    Attributes:
        held_bytes: Bytes of the numbers that are held.
        held_since: When the first of them came (`time.monotonic`).
    """

    def __init__(self, write: Callable[[Part], None], then: Callable[[], bool]) -> None:
        """Start without any rows; the thread begins with the first commit.

        Args:
            write: Commits a part. Called in the thread, and again with the same rows where it
                raises.
            then: Does a bit of other work, and tells whether there is more. Called in the thread
                after a commit, once and until it is asked for the next one; must not raise.
        """
        self.held_bytes = 0
        self.held_since = 0.0
        self._write = write
        self._then = then
        self._held: list[_Pack] = []
        self._handed_over: list[_Pack] = []
        self._under_way: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, "commits")
        self._asked = threading.Event()

    def hold(
        self, rows: torch.Tensor, ids: tuple[str, ...], columns: dict[str, torch.Tensor]
    ) -> None:
        """Take a pack's rows (N,), their ids (N,) and columns (N, ...), on the host."""
        if not self._held:
            self.held_since = time.monotonic()
        self._held.append(_Pack(rows, ids, columns))
        self.held_bytes += sum(column.nbytes for column in columns.values())

    def check(self) -> None:
        """Raise what the last commit raised, if it is over."""
        if self._under_way is not None and self._under_way.done():
            self._raise_last()

    def begin(self) -> None:
        """Hand the rows that are held over, as soon as the last commit is over.

        Raises:
            OutputError: If the last commit failed. Nothing is handed over; the next call does so
                with the rows of that commit.
        """
        self._raise_last()
        if not self._handed_over:  # else a commit has failed
            self._handed_over, self._held, self.held_bytes = self._held, [], 0
        if self._handed_over:
            self._asked.set()
            self._under_way = self._thread.submit(self._commit, self._handed_over)
            self._thread.submit(self._go_on)

    def finish(self) -> None:
        """Commit all rows, those of a failed commit first, and wait until that is done.

        Raises:
            OutputError: If a commit failed; its rows and those behind it are held.
        """
        self._raise_last()
        while self._handed_over or self._held:
            self.begin()
            self._raise_last()

    def settle(self) -> BaseException | None:
        """Wait for the commit under way, and return what it raised."""
        if self._under_way is None:
            return None
        error = self._under_way.exception()
        if error is None:
            self._handed_over = []
        self._under_way = None
        return error

    def rest(self) -> None:
        """Wait until the thread is idle; from here on it does nothing but what it is asked to."""
        self._end_other_work()
        self.do(_nothing)

    def do(self, work: Callable[[], object]) -> None:
        """Do other work in the thread, after the commit under way, and wait for it."""
        self._thread.submit(work).result()

    def close(self) -> None:
        """End the thread, after the commit under way."""
        self._end_other_work()
        self._thread.shutdown()

    def _end_other_work(self) -> None:
        self._then = _nothing
        self._asked.set()

    def _raise_last(self) -> None:
        if (error := self.settle()) is not None:
            raise error

    def _commit(self, packs: list[_Pack]) -> None:
        self._asked.clear()
        part = Part(
            np.concatenate([pack.rows.numpy() for pack in packs]),
            list(chain.from_iterable(pack.ids for pack in packs)),
            {
                name: np.concatenate([pack.columns[name].numpy() for pack in packs])
                for name in packs[0].columns
            },
        )
        self._write(part)

    def _go_on(self) -> None:
        while self._then() and not self._asked.is_set():
            pass


def _nothing() -> bool:
    return False
