"""Proteins to ESM-2 tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from virnucpro_pl.contracts import Molecule


class ProteinTokenizer:
    """Residues to ESM-2 tokens by a lookup table: `<cls>`, one token a residue, `<eos>`."""

    molecule: Molecule = "protein"
    specials = 2
    margin = 1
    CLS, EOS, UNK = 0, 2, 3

    def __init__(self) -> None:
        """Build the table; letters in the order of fair-esm's alphabet, from token 4 on."""
        self._table = np.full(256, self.UNK, np.int64)
        self._table[np.frombuffer(b"LAGVSERTIDPKQNFYMHWCXBUZO", np.uint8)] = np.arange(4, 29)

    def estimate(self, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of proteins of these lengths, exact."""
        return lengths

    def encode(self, sequences: Sequence[bytes]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tokens (T,) of all proteins, `<cls>` and `<eos>` included, and how many each has (N,)."""
        # A byte 0 before and behind each protein leaves room for its special tokens.
        joined = np.frombuffer(b"".join(b"\0%b\0" % sequence for sequence in sequences), np.uint8)
        counts = np.fromiter(map(len, sequences), np.int64, len(sequences)) + 2
        tokens = self._table[joined]
        ends = np.cumsum(counts)
        tokens[ends - counts] = self.CLS
        tokens[ends - 1] = self.EOS
        return tokens, counts
