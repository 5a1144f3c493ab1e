"""Whether the nearest neighbour of a record is the same in two files, and how near others are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torchmetrics.functional import pairwise_cosine_similarity

from virnucpro_pl.compare.joined import Joined

SAMPLE = 5000
"""Records at most among which nearest neighbours are sought."""
_BLOCK = 500
_TIE = 1e-6
"""Cosine within which two neighbours are equally near: identical sequences have no order."""


class Neighbours(NamedTuple):
    """What a sample of records says about those beside them."""

    sample: int
    """Records sampled."""
    same: float | None
    """Share of them whose nearest neighbour in A is also nearest in B; None with less than three.

    Near is a high cosine, each file's vectors centred on their own mean.
    """
    cosine_of_others: float | None
    """Median plain cosine of different records of A: what a wrong vector would have."""


def compare_neighbours(pairs: Joined, seed: int) -> Neighbours:
    """Compare who is near whom in two files, among a sample drawn with this seed."""
    count = len(pairs.first)
    if count <= 2:  # one neighbour at most: it cannot change
        return Neighbours(count, None, None)
    generator = np.random.default_rng(seed)
    sample = pairs.chosen(np.sort(generator.permutation(count)[:SAMPLE]))
    a, b = sample.vectors()
    others = torch.nn.functional.cosine_similarity(a, a.roll(1, dims=0)).median()
    a, b = a - a.mean(dim=0), b - b.mean(dim=0)
    same = 0
    for start in range(0, len(a), _BLOCK):
        block = torch.arange(start, min(start + _BLOCK, len(a)))
        near = []
        for vectors in (a, b):
            cosines = pairwise_cosine_similarity(vectors[block], vectors).nan_to_num(nan=-1.0)
            cosines[torch.arange(len(block)), block] = -torch.inf
            near.append(cosines)
        best, chosen = near[0].max(dim=1).values, near[1].argmax(dim=1, keepdim=True)
        same += int((near[0].gather(1, chosen).squeeze(1) >= best - _TIE).sum())
    return Neighbours(len(a), same / len(a), float(others))
