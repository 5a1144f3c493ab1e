"""What the processor does meanwhile: tokenising, and chunks with their six frames, on one core."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from importlib.util import find_spec

import numpy as np

from virnucpro_pl.bench.case import Case
from virnucpro_pl.bench.meter import Row, repeat
from virnucpro_pl.input.orfs import find_orfs

log = logging.getLogger(__name__)

_CHUNK = 500


def tokenising(case: Case) -> Row:
    """The sample to tokens, as a DataLoader process does it."""
    tokenizer = case.embedder().tokenizer
    _, counts = tokenizer.encode(case.sample)
    rate = _rate(case, lambda: tokenizer.encode(case.sample), len(case.sample))
    return _row("tokenising, one core", rate, float(np.mean(counts)))


def six_frames(case: Case, peers: bool) -> Iterator[Row]:
    """Chunks of 500 bases to their open frames; and Biopython, which only translates them.

    Args:
        case: Says for how long.
        peers: Whether to measure Biopython, where it is installed.
    """
    letters = np.random.default_rng(0).choice(np.frombuffer(b"ACGT", np.uint8), (2000, _CHUNK))
    offsets = np.arange(len(letters) + 1) * _CHUNK
    rate = _rate(case, lambda: find_orfs(letters.ravel(), offsets, _CHUNK), len(letters))
    yield _row("chunks and their six frames, one core", rate)
    if not peers:
        return
    if find_spec("Bio") is None:
        log.info("Biopython is not installed, so its translate is not measured")
        return
    from Bio.Seq import Seq

    chunks = [Seq(row.tobytes()) for row in letters[:100]]

    def translate() -> None:
        for chunk in chunks:
            for strand in (chunk, chunk.reverse_complement()):
                for frame in range(3):
                    end = len(strand) - (len(strand) - frame) % 3
                    strand[frame:end].translate()

    yield _row("six frames by Biopython's translate, one core", _rate(case, translate, len(chunks)))


def _rate(case: Case, step: Callable[[], object], sequences: int) -> float:
    """Sequences per second of a step, over a tenth of the time, after a first one."""
    _, times = repeat(case, step, case.seconds / 10)
    return len(times) * sequences / sum(times)


def _row(name: str, rate: float, tokens: float = math.nan) -> Row:
    log.info("%s: %.0f sequences/s", name, rate)
    return Row(name, rate * tokens, rate)
