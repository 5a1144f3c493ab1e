"""Open reading frames as one forward pass of both models takes them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from virnucpro_pl.input.packed_batch import PackedBatch


class OrfBatch(NamedTuple):
    """ORFs as one forward pass of both models takes them."""

    proteins: PackedBatch
    """Of ESM-2."""
    nucleotides: PackedBatch
    """Of DNABERT-S, of the same rows in the same order."""
    following: OrfBatch | None = None
    """The next batch, where the device is to begin with it already."""
    distinct: DistinctOrfs | None = None
    """Which rows have both in common; None where each has a protein and nucleotides of its own."""

    @property
    def rows(self) -> Tensor:
        """(B,) int64 row of each ORF; on the host."""
        return self.proteins.rows

    @property
    def ids(self) -> tuple[str, ...]:
        """(B,) id of each ORF."""
        return self.proteins.ids

    @property
    def tokens(self) -> Tensor:
        """(T,) tokens of the proteins, by which packs are bounded."""
        return self.proteins.tokens

    def join(self, nucleotides: Tensor, proteins: Tensor) -> Tensor:
        """Features (O, F) of the distinct ORFs, of vectors (N, D) of both packs; on the device."""
        if self.distinct is not None:
            nucleotides = nucleotides[self.distinct.nucleotide]
            proteins = proteins[self.distinct.protein]
        return torch.cat((nucleotides, proteins), dim=1)

    def of_orfs(self, numbers: Tensor) -> Tensor:
        """What belongs to each distinct ORF (O, ...), of what belongs to each row (B, ...)."""
        return numbers if self.distinct is None else numbers[self.distinct.first]

    def of_rows(self, numbers: Tensor) -> Tensor:
        """What belongs to each row (B, ...), of what belongs to each distinct ORF (O, ...)."""
        return numbers if self.distinct is None else numbers[self.distinct.spread]

    def to(self, device: torch.device) -> OrfBatch:
        """Copy what the models read to a device, without waiting for it."""
        return self._replace(
            proteins=self.proteins.to(device),
            nucleotides=self.nucleotides.to(device),
            distinct=self.distinct and self.distinct.to(device),
        )


class DistinctOrfs(NamedTuple):
    """The distinct pairs of protein and nucleotides in a batch, O of them."""

    first: Tensor
    """(O,) int64 place in the batch of the first row of each; stays on the host."""
    spread: Tensor
    """(B,) int64 which of them each row has; stays on the host."""
    protein: Tensor
    """(O,) int64 its protein in the pack of proteins."""
    nucleotide: Tensor
    """(O,) int64 its nucleotides in the pack of those."""

    def to(self, device: torch.device) -> DistinctOrfs:
        """Copy what the classifier reads to a device, without waiting for it."""
        return self._replace(
            protein=self.protein.to(device, non_blocking=True),
            nucleotide=self.nucleotide.to(device, non_blocking=True),
        )


def pair(proteins: PackedBatch, nucleotides: PackedBatch) -> OrfBatch:
    """Make the batch of some ORFs' proteins and nucleotides."""
    if proteins.spread is None and nucleotides.spread is None:
        return OrfBatch(proteins, nucleotides)
    each = np.arange(len(proteins.rows))
    protein, nucleotide = (
        each if pack.spread is None else pack.spread.numpy() for pack in (proteins, nucleotides)
    )
    places = protein * nucleotides.size + nucleotide
    _, first, spread = np.unique(places, return_index=True, return_inverse=True)
    columns = first, spread, protein[first], nucleotide[first]
    return OrfBatch(proteins, nucleotides, distinct=DistinctOrfs(*map(torch.from_numpy, columns)))
