"""Which consecutive sequences share one forward pass."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

_GPU_TOKENS = 16_384
_CPU_TOKENS = 2_048
"""Tokens of a pack where nobody says how many. A CPU is about as fast with few as with many, and
commits and tells of its progress that much more often."""


def default_budget(device: str) -> int:
    """Tokens of a pack on a type of device, `cuda` or `cpu`, where nobody says how many."""
    return _GPU_TOKENS if device == "cuda" else _CPU_TOKENS


def plan_packs(lengths: ArrayLike, budget: int, specials: int = 2) -> list[range]:
    """Cut a list of sequences into packs of consecutive ones, greedily; pure and deterministic.

    Args:
        lengths: (N,) residues of each sequence, or tokens as estimated, which need not be whole
            numbers; special tokens not counted.
        budget: Tokens that a pack may hold; a sequence that is longer gets a pack of its own.
        specials: Special tokens added to each sequence, 2 for BOS and EOS.

    Returns:
        Packs as ranges of indices; every index from 0 to N - 1 is in exactly one, in order.

    Raises:
        ValueError: If the budget is not positive.
    """
    if budget < 1:
        raise ValueError(f"A pack must hold at least one token, not {budget}")
    ends = np.cumsum(np.asarray(lengths, dtype=np.float64) + specials)
    packs, start, used = [], 0, 0.0
    while start < len(ends):
        stop = max(int(np.searchsorted(ends, used + budget, side="right")), start + 1)
        packs.append(range(start, stop))
        start, used = stop, float(ends[stop - 1])
    return packs
