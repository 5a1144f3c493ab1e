"""Two files of vectors, joined by id."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from virnucpro_pl.compare.original_file import OriginalFile
from virnucpro_pl.embeddings.embedding_file import EmbeddingFile

_BLOCK = 1024

Vectors = EmbeddingFile | OriginalFile
"""A file of vectors."""


class Joined(NamedTuple):
    """Rows of both files that are compared."""

    files: tuple[Vectors, Vectors]
    first: NDArray[np.int64]
    """(S,) rows of A."""
    second: NDArray[np.int64]
    """(S,) rows of B."""

    def blocks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield which pairs, and their vectors (n, D) float32 in A and in B."""
        for start in range(0, len(self.first), _BLOCK):
            block = slice(start, min(start + _BLOCK, len(self.first)))
            yield block, *self.chosen(block).vectors()

    def chosen(self, keep: NDArray[np.generic] | slice) -> Joined:
        """Some of the pairs, by index, mask or slice."""
        return Joined(self.files, self.first[keep], self.second[keep])

    def vectors(self) -> tuple[Tensor, Tensor]:
        """Vectors (S, D) float32 in A and in B."""
        a, b = self.files
        return torch.from_numpy(a.rows(self.first)), torch.from_numpy(b.rows(self.second))
