"""Which letters a model accepts, and what becomes of each, as tables over the 256 byte values."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["DNA", "PRINTABLE", "PROTEIN", "Alphabet"]

KEPT, NOTED, REFUSED = 0, 1, 2
BLANKS = b" \t"
"""Removed from sequence lines, as Biopython does."""


class Alphabet(NamedTuple):
    """Letters of one kind of sequence."""

    name: str
    """What a letter is called in messages."""
    translation: bytes
    """(256,) letter to store for each letter read; upper case is made here."""
    status: NDArray[np.uint8]
    """(256,) for each stored letter: 0 kept, 1 kept and counted, 2 an error."""
    noted: str
    """What happens to counted letters, for the log."""
    drop_stop: bool
    """Whether one `*` at the very end is dropped and counted."""


def _alphabet(
    name: str, kept: bytes, noted: bytes, why: str, *, drop_stop: bool = False
) -> Alphabet:
    status = np.full(256, REFUSED, np.uint8)
    status[list(kept)] = KEPT
    status[list(noted)] = NOTED
    return Alphabet(name, bytes(range(256)).upper(), status, why, drop_stop)


PROTEIN = _alphabet(
    "residue",
    b"ABCDEFGHIKLMNOPQRSTUVWXYZ",
    b"J",
    "read as <unk>, since the ESM alphabet lacks J",
    drop_stop=True,
)
"""Residues of ESM-2; X, B, U, Z and O have tokens of their own."""

DNA = _alphabet("base", b"ACGTNRYSWKMBDHV", b"U", "read as T")
"""Bases of DNABERT-S with the IUPAC codes; U is stored as it is and read as T by the tokenizer."""

PRINTABLE = _alphabet(
    "character",
    b"ACGTN",
    bytes(c for c in range(33, 127) if c not in b"ACGTN" and not chr(c).islower()),
    "kept as they are: a codon with one yields no residue, as in VirNucPro",
)
"""Contigs for VirNucPro, which takes any printable ASCII character."""
