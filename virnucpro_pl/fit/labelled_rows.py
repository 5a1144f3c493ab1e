"""Rows of two sets of embedding files, others and virus, by number and in batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

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

    def ids(self, rows: NDArray[np.int64]) -> list[str]:
        """Ids of some rows in ascending order."""
        others, viral = rows[rows < self.border], rows[rows >= self.border]
        return [*self.stores[0].ids(others), *self.stores[1].ids(viral - self.border)]

    def __getitem__(self, rows: list[int]) -> LabelledBatch:
        """Read one batch."""
        numbers = np.asarray(rows, np.int64)
        labels = torch.from_numpy(self.labels[numbers])
        return LabelledBatch(torch.from_numpy(self.features(numbers)), labels)


class Batches(Sampler[list[int]]):
    """Whole batches of some rows; shuffled ones in an order that seed and epoch decide alone.

    So a training that goes on from an epoch's end sees what it would have seen without the break.
    """

    def __init__(self, rows: NDArray[np.int64], size: int, shuffle_seed: int | None = None) -> None:
        """Keep the rows.

        Args:
            rows: (V,) the rows.
            size: Rows of a batch.
            shuffle_seed: Seed of the order; None keeps that of the rows. A last batch of a single
                row is left out of a shuffled pass: batch normalisation needs two.
        """
        self.rows = rows
        self.size = size
        self.shuffle_seed = shuffle_seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Take the number of the pass; Lightning calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Count the batches."""
        return len(self._starts)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the rows of each batch."""
        rows = self.rows
        if self.shuffle_seed is not None:
            rows = np.random.default_rng((self.shuffle_seed, self.epoch)).permutation(rows)
        for start in self._starts:
            yield rows[start : start + self.size].tolist()

    @property
    def _starts(self) -> range:
        single = self.shuffle_seed is not None and len(self.rows) % self.size == 1
        return range(0, len(self.rows) - single, self.size)
