"""Rows of two sets of embedding files, others and virus, by number and in batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from virnucpro_pl.embeddings.pair_datamodule import PairStore
from virnucpro_pl.input.records import write_array

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
        held: (M, F) fp32 features, from `load` on; in memory, or a map of a file.
    """

    held: NDArray[np.float32]

    def __init__(self, stores: tuple[PairStore, PairStore]) -> None:
        """Keep the files.

        Args:
            stores: Others and virus.
        """
        self.stores = stores
        self.border = len(stores[0])
        self.labels = np.repeat(np.arange(2), [len(store) for store in stores])

    def __len__(self) -> int:
        """Count the rows of both sets."""
        return len(self.labels)

    def load(self, scratch: Path | None) -> NDArray[np.bool_]:
        """Read every row once, so that any can be had at once: M * F * 4 bytes.

        Embedding files hold rows in blocks, of which a batch of a few random ones would read many.

        Args:
            scratch: Folder for a file of them, which has no name once it is written and so is gone
                with the process, however that ends; None keeps them in memory.

        Returns:
            (M,) flags of the rows whose numbers are all finite.

        Raises:
            OSError: If the file cannot be written.
        """
        shape = len(self), self.stores[0].width
        finite = np.empty(len(self), np.bool_)
        if scratch is None:
            self.held = np.empty(shape, np.float32)
            for rows, features in self._blocks():
                self.held[rows], finite[rows] = features, np.isfinite(features).all(axis=1)
            return finite
        path = scratch / "features"
        with path.open("wb") as file:  # not through a map, where a full disk would be a bus error
            for rows, features in self._blocks():
                write_array(file, features)
                finite[rows] = np.isfinite(features).all(axis=1)
        self.held = np.memmap(path, np.float32, "r", shape=shape)
        path.unlink()
        return finite

    def _blocks(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Yield the features of all rows in order, and which they are."""
        for first, store in zip((0, self.border), self.stores, strict=True):
            for start in range(0, len(store), _BLOCK):
                rows = np.arange(start, min(start + _BLOCK, len(store)))
                yield slice(first + start, first + start + len(rows)), store.features(rows)

    def features(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(N, F) features of some rows, in the order asked for; after `load`."""
        return np.asarray(self.held[rows])

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
