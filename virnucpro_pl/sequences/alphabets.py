"""Which letters a model accepts, and what becomes of each, as tables over the 256 byte values."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["DNA", "PRINTABLE", "PROTEIN", "Alphabet"]

KEPT, NOTED, REFUSED = 0, 1, 2
UPPER = bytes(range(256)).upper()
"""(256,) upper-case letter of each letter read."""
BLANKS = b" \t"
"""Removed from sequence lines, as Biopython does."""


class Alphabet(NamedTuple):
    """Letters of one kind of sequence."""

    name: str
    """What a letter is called in messages."""
    status: NDArray[np.uint8]
    """(256,) for each upper-case letter read: 0 kept, 1 kept and counted, 2 an error."""
    translation: bytes
    """(256,) letter to store for each upper-case letter; only counted ones may change."""
    noted: str
    """What happens to counted letters, for the log."""
    drop_stop: bool
    """Whether one `*` at the very end is dropped and counted."""


def _alphabet(
    name: str, kept: bytes, noted: bytes, why: str, *, stored: bytes = b"", drop_stop: bool = False
) -> Alphabet:
    """Make an alphabet; `stored` are the letters to store for `noted` ones, where they change."""
    status = np.full(256, REFUSED, np.uint8)
    status[list(kept)] = KEPT
    status[list(noted)] = NOTED
    translation = bytes.maketrans(noted, stored or noted)
    return Alphabet(name, status, translation, why, drop_stop)


PROTEIN = _alphabet(
    "residue",
    b"ABCDEFGHIKLMNOPQRSTUVWXYZ",
    b"J",
    "read as <unk>, since the ESM alphabet lacks J",
    drop_stop=True,
)
"""Residues of ESM-2; X, B, U, Z and O have tokens of their own."""

DNA = _alphabet("base", b"ACGTNRYSWKMBDHV", b"U", "read as T", stored=b"T")
"""Bases of DNABERT-S with the IUPAC codes; U, the base of RNA, is stored as T."""

PRINTABLE = _alphabet("character", bytes(range(33, 127)), b"", "")
"""Contigs for VirNucPro, which takes any printable ASCII character as it is."""
