"""Rows of two sets of embedding files, others and virus, by number and in batches."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import BatchSampler, Dataset, SubsetRandomSampler

from virnucpro_pl.embeddings.pair_datamodule import PairStore

_BLOCK = 4096


class LabelledBatch(NamedTuple):
    """Rows of both sets."""

    features: Tensor
    """(N, F) fp32: DNABERT-S, then ESM-2."""
    labels: Tensor
    """(N,) int64: 0 for others, 1 for virus."""


class LabelledRows(Dataset[LabelledBatch]):
    """Rows of both sets by number, a whole batch at a time; the viral ones come after the others.

    Attributes:
        labels: (M,) int64, 0 for others, 1 for virus.
        held: (M, F) fp32 features, where they are held in memory.
    """

    def __init__(self, stores: tuple[PairStore, PairStore]) -> None:
        """Keep the files.

        Args:
            stores: Others and virus.
        """
        self.stores = stores
        self.border = len(stores[0])
        self.labels = np.repeat(np.arange(2), [len(store) for store in stores])
        self.held: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        """Count the rows of both sets."""
        return len(self.labels)

    def finite(self, hold: bool) -> NDArray[np.bool_]:
        """Read every row once: (M,) flags of those whose numbers are all finite.

        Args:
            hold: Whether to keep them in memory, M * F * 4 bytes.
        """
        held = np.empty((len(self), self.stores[0].width), np.float32) if hold else None
        finite = np.empty(len(self), np.bool_)
        for start in range(0, len(self), _BLOCK):
            rows = np.arange(start, min(start + _BLOCK, len(self)))
            features = self.features(rows)
            finite[rows] = np.isfinite(features).all(axis=1)
            if held is not None:
                held[rows] = features
        self.held = held
        return finite

    def features(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(N, F) features of some rows, in the order asked for."""
        if self.held is not None:
            return self.held[rows]
        features = np.empty((len(rows), self.stores[0].width), np.float32)
        viral = rows >= self.border
        for store, chosen, first in zip(
            self.stores, (~viral, viral), (0, self.border), strict=True
        ):
            if chosen.any():
                features[chosen] = store.features(rows[chosen] - first)
        return features

    def __getitem__(self, rows: list[int]) -> LabelledBatch:
        """Read one batch."""
        numbers = np.asarray(rows, np.int64)
        labels = torch.from_numpy(self.labels[numbers])
        return LabelledBatch(torch.from_numpy(self.features(numbers)), labels)


def batches(rows: NDArray[np.int64], size: int, shuffle: bool) -> BatchSampler:
    """A sampler of whole batches of these rows; shuffled, in a new order at each pass.

    A last one of a single row is left out of a shuffled pass: batch normalisation needs two.
    """
    numbers = rows.tolist()
    sampler = SubsetRandomSampler(numbers) if shuffle else numbers
    return BatchSampler(sampler, size, drop_last=shuffle and len(numbers) % size == 1)
