"""Planned packs of rows, tokenised when asked for: in a DataLoader worker or the process itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from virnucpro_pl.contracts import Tokenizer
from virnucpro_pl.input.orf_batch import OrfBatch, pair
from virnucpro_pl.input.orf_store import Kind, OrfStore
from virnucpro_pl.input.orfs import POOLED_RESIDUES
from virnucpro_pl.input.packed_batch import PackedBatch, lay, pack, share
from virnucpro_pl.input.packing import plan_packs
from virnucpro_pl.input.records import RecordStore


@dataclass(eq=False)
class Packs(Dataset[list[PackedBatch]]):
    """Packs of rows that are sequences."""

    store: RecordStore
    packs: list[NDArray[np.int64]]
    """Rows of each planned pack."""
    tokenizer: Tokenizer
    budget: int
    """Tokens that a pack may hold."""
    max_length: int | None
    """Letters of a sequence that are kept; None for all."""
    shared: bool = False
    """Whether rows with equal sequences have one of them."""

    def __len__(self) -> int:
        """Count the planned packs."""
        return len(self.packs)

    def __getitem__(self, index: int) -> list[PackedBatch]:
        """Tokenise a planned pack; where the estimate of its tokens was too low, cut it again."""
        rows = self.packs[index]
        ids = self.store.ids(rows)
        sequences, spread = self.store.sequences(rows, self.max_length), None
        if self.shared:
            sequences, spread = share(sequences)
        tokens, counts = self.tokenizer.encode(sequences)
        lengths = np.fromiter(map(len, sequences), np.int32, len(sequences))
        starts = np.concatenate(([0], np.cumsum(counts)))
        batches = []
        for cut in plan_packs(counts, self.budget, specials=0):
            part, chosen, places = slice(cut.start, cut.stop), np.asarray(cut), None
            if spread is not None:
                chosen = np.flatnonzero((spread >= cut.start) & (spread < cut.stop))
                places = spread[chosen] - cut.start
            batches.append(
                lay(
                    rows[chosen],
                    [ids[i] for i in chosen.tolist()],
                    lengths[part],
                    tokens[starts[cut.start] : starts[cut.stop]],
                    counts[part],
                    self.tokenizer.margin,
                    spread=places,
                )
            )
        return batches


@dataclass(eq=False)
class OrfPacks(Dataset[list[OrfBatch]]):
    """Packs of ORFs, tokenised for both models when asked for."""

    store: OrfStore
    packs: list[NDArray[np.int64]]
    """Rows of each pack."""
    proteins: Tokenizer
    nucleotides: Tokenizer
    max_length: int | None = None
    """Residues, and codons, of an ORF that are kept; None for all."""
    shared: bool = False
    """Whether ORFs with equal proteins have one of them, and so of the nucleotides."""

    def __len__(self) -> int:
        """Count the packs."""
        return len(self.packs)

    def __getitem__(self, index: int) -> list[OrfBatch]:
        """Tokenise one pack."""
        rows = self.packs[index]
        ids = self.store.ids(rows)
        proteins = self._pack("protein", rows, ids, self.proteins, POOLED_RESIDUES)
        nucleotides = self._pack("nucleotide", rows, ids, self.nucleotides)
        return [pair(proteins, nucleotides)]

    def _pack(
        self,
        kind: Kind,
        rows: NDArray[np.int64],
        ids: list[str],
        tokenizer: Tokenizer,
        pool_limit: int | None = None,
    ) -> PackedBatch:
        most = self.max_length if kind == "protein" else bases_of(self.max_length)
        sequences, spread = self.store.sequences(kind, rows, most), None
        if self.shared:
            sequences, spread = share(sequences)
        return pack(rows, ids, sequences, tokenizer, pool_limit, spread)


def bases_of(residues: int | None) -> int | None:
    """Bases of so many residues; None for all."""
    return None if residues is None else 3 * residues
