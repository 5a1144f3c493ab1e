"""What the original program gave for the contigs that lie beside this file, in FP32.

`contigs.fa` and the numbers of `reference.npz` are from the tests of virnucpro-broad
(https://github.com/broadinstitute/virnucpro-broad, MIT License, Copyright (c) 2025 Broad
Institute). They were made with the published DNABERT-S, ESM-2 3B and 500_model.pth.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CONTIGS = Path(__file__).with_name("contigs.fa")
"""Two contigs of 500 bases."""
CHUNK = 500
"""Bases of a chunk, as the classifier takes them."""
_NUMBERS = Path(__file__).with_name("reference.npz")


class Reference(NamedTuple):
    """The open reading frames of the contigs, and their numbers, all in one order."""

    ids: list[str]
    nucleotides: list[str]
    proteins: list[str]
    dnabert_s: NDArray[np.float32]
    """(N, 768) embeddings of the nucleotides."""
    esm2: NDArray[np.float32]
    """(N, 2560) embeddings of the proteins."""
    esm2_name: str
    """The published ESM-2 whose embeddings they are."""
    scores: NDArray[np.float32]
    """(N, 2) P(others) and P(virus)."""
    labels: list[str]
    """`virus` or `others`."""


def load_reference(path: Path = _NUMBERS) -> Reference:
    """Read the numbers."""
    with np.load(path) as file:
        return Reference(**{
            name: file[name] if file[name].dtype == np.float32 else file[name].tolist()
            for name in Reference._fields
        })  # fmt: skip
