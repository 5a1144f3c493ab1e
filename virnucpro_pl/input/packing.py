"""Which consecutive sequences share one forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GPU_TOKENS = 16_384
_CPU_TOKENS = 2_048
"""Tokens of a pack where nobody says how many. A CPU is about as fast with few as with many, and
commits and tells of its progress that much more often."""


def default_budget(device: str) -> int:
    """Tokens of a pack on a type of device, `cuda` or `cpu`, where nobody says how many."""
    return _GPU_TOKENS if device == "cuda" else _CPU_TOKENS


def plan_packs(
    lengths: ArrayLike,
    budget: float,
    specials: int = 2,
    *,
    besides: Sequence[tuple[ArrayLike, float]] = (),
) -> list[range]:
    """Cut a list of sequences into packs of consecutive ones, greedily; pure and deterministic.

    Args:
        lengths: (N,) residues of each sequence, or tokens as estimated, which need not be whole
            numbers; special tokens not counted.
        budget: Tokens that a pack may hold; a sequence that is longer gets a pack of its own.
        specials: Special tokens added to each sequence, 2 for BOS and EOS.
        besides: What else each sequence brings with it (N,), and how much of it a pack may hold.

    Returns:
        Packs as ranges of indices; every index from 0 to N - 1 is in exactly one, in order.

    Raises:
        ValueError: If the budget is not positive.
    """
    if budget < 1:
        raise ValueError(f"A pack must hold at least one token, not {budget}")
    sums = np.array(lengths, np.float64)
    sums += specials
    bounds = [(np.cumsum(sums, out=sums), float(budget))]
    bounds += [(np.cumsum(amounts, dtype=np.float64), most) for amounts, most in besides]
    return cut_by_sums(bounds)


def cut_by_sums(bounds: Sequence[tuple[NDArray[np.float64], float]]) -> list[range]:
    """Cut a list into packs of consecutive ones, greedily, as `plan_packs` does.

    Args:
        bounds: Sums (N,) of an amount over all up to each one, and how much of it a pack may hold;
            one or more of them.

    Returns:
        Packs as ranges of indices.
    """
    count = len(bounds[0][0])
    packs, start = list[range](), 0
    while start < count:
        stops = [
            int(np.searchsorted(sums, (sums[start - 1] if start else 0.0) + most, side="right"))
            for sums, most in bounds
        ]
        stop = max(min(stops), start + 1)
        packs.append(range(start, stop))
        start = stop
    return packs
