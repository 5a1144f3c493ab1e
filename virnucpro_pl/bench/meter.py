"""How it is measured: speed, memory, and the limit of the matrix products around each figure."""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from virnucpro_pl.bench.case import Case

log = logging.getLogger(__name__)

_LIMIT_TOKENS = 16_384


class Row(NamedTuple):
    """One line of the result."""

    name: str
    tokens_per_second: float
    sequences_per_second: float
    gib: float = math.nan
    """Peak GPU memory."""
    warm_up_seconds: float = math.nan
    """First pass, compilation included."""
    over_limit: float = math.nan
    """tokens_per_second over that of the matrix products alone, measured around it."""


class Measured:
    """What was measured of one way of doing it.

    Attributes:
        tokens: Tokens that were embedded in `seconds`.
        sequences: Sequences that were.
        seconds: Wall time without the warm-up.
        warm_up: Seconds of the first pass, compilation included.
        gib: Peak GPU memory.
        limit: Tokens per second of the matrix products alone, before and after.
    """

    tokens = sequences = seconds = 0.0
    warm_up = gib = limit = math.nan

    def row(self, name: str) -> Row:
        """Make a line of the result, and log it."""
        rate = self.tokens / self.seconds
        row = Row(
            name, rate, self.sequences / self.seconds, self.gib, self.warm_up, rate / self.limit
        )
        log.info("%s: %.0f tokens/s, %.3f of the limit", name, rate, row.over_limit)
        return row


@contextmanager
def measured(case: Case) -> Iterator[Measured]:
    """Measure the limit before and after, and the peak memory in between."""
    timed = Measured()
    before = limit(case)
    if case.cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield timed
    if case.cuda:
        timed.gib = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.empty_cache()
    timed.limit = (before + limit(case)) / 2


def limit(case: Case) -> float:
    """Tokens per second of the matrix products alone, at the model's own shapes.

    The first half of the time is for the card to get as warm, and as slow, as under other load.
    """
    layers, products = case.products
    tokens = _LIMIT_TOKENS if case.cuda else 64
    options: dict[str, Any] = {"device": case.device, "dtype": case.dtype}
    inputs = {i: torch.randn(tokens, i, **options) for i, _ in products}
    weights = [torch.randn(o, i, **options) for i, o in products]

    def step() -> None:
        for _ in range(layers):
            for weight in weights:
                F.linear(inputs[weight.shape[1]], weight)

    with torch.inference_mode():
        _, times = repeat(case, step, min(3.0, case.seconds / 10))
    return tokens / statistics.median(times[len(times) // 2 :])


def repeat(case: Case, step: Callable[[], Any], seconds: float) -> tuple[float, list[float]]:
    """Seconds of the first step, and of each one in the given time, three at least."""
    times: list[float] = []
    while not times or sum(times[1:]) < seconds or len(times) < 4:
        began = time.perf_counter()
        step()
        case.wait()
        times.append(time.perf_counter() - began)
    return times[0], times[1:]
