"""Which letters a model accepts, and what becomes of each, as tables over the 256 byte values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro_pl.contracts import Molecule

KEPT, NOTED, REFUSED = 0, 1, 2
UPPER = bytes(range(256)).upper()
"""(256,) upper-case letter of each letter read."""
BLANKS = b" \t"
"""Removed from sequence lines, as Biopython does."""
CERTAIN_BASES = b"ACGTUN"
"""Letters of which DNA and RNA consist, but for a few IUPAC codes."""
_IUPAC = b"ACGTNRYSWKMBDHV"


class Alphabet(NamedTuple):
    """Letters of one kind of sequence."""

    name: str
    """What a letter is called in messages."""
    molecule: Molecule
    """What the sequences are."""
    status: NDArray[np.uint8]
    """(256,) for each upper-case letter read: 0 kept, 1 kept and counted, 2 an error."""
    translation: bytes
    """(256,) letter to store for each upper-case letter; only counted ones may change."""
    noted: str
    """What happens to counted letters, for the log."""
    count_name: str
    """The same as the name of their number, in `summary.json` and `<output>.run.json`."""
    drop_stop: bool
    """Whether one `*` at the very end is dropped and counted."""


def _alphabet(
    name: str,
    molecule: Molecule,
    kept: bytes,
    noted: bytes,
    meaning: str,
    count_name: str,
    *,
    stored: bytes = b"",
    drop_stop: bool = False,
) -> Alphabet:
    """Make an alphabet; `stored` are the letters to store for `noted` ones, where they change."""
    status = np.full(256, REFUSED, np.uint8)
    status[list(kept)] = KEPT
    status[list(noted)] = NOTED
    translation = bytes.maketrans(noted, stored or noted)
    return Alphabet(name, molecule, status, translation, meaning, count_name, drop_stop)


PROTEIN = _alphabet(
    "residue",
    "protein",
    b"ABCDEFGHIKLMNOPQRSTUVWXYZ",
    b"J",
    "J are read as <unk>, since the ESM alphabet lacks J",
    "j_read_as_unk",
    drop_stop=True,
)
"""Residues of ESM-2; X, B, U, Z and O have tokens of their own, J has none."""

DNA = _alphabet("base", "DNA", _IUPAC, b"U", "U (RNA) are read as T", "u_read_as_t", stored=b"T")
"""Bases with the IUPAC codes; U, the base of RNA, is stored as T."""

PRINTABLE = _alphabet(
    "character of a contig", "DNA", bytes(set(range(33, 127)) - set(b">")), b"", "", ""
)
"""Contigs as VirNucPro takes them: any printable ASCII character as it is. A `>` never is data."""

ALPHABETS: Mapping[Molecule, Alphabet] = {"DNA": DNA, "protein": PROTEIN}
"""What is read where a network embeds a molecule."""

IS_LETTER = np.isin(np.arange(256), list(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
"""(256,) whether a byte is an upper-case letter, and not a gap, a digit or the like."""
IS_NO_BASE = IS_LETTER & (DNA.status == REFUSED)
"""(256,) whether a byte is a letter, but no base: E, F, I, J, L, O, P, Q, X, Z."""
