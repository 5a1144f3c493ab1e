"""The known labels: which records are viruses."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from virnucpro_pl.evaluate.table_blocks import ID, read_blocks

LABEL = "label"
WORDS = {"virus": 1, "viral": 1, "1": 1, "true": 1, "others": 0, "0": 0, "false": 0}
"""What a label may be, in letters of any case; any other word is an error."""


class TruthTable:
    """Labels by record, from a table with the columns `seq_name` and `label`.

    Attributes:
        path: The table.
    """

    def __init__(self, path: Path) -> None:
        """Read nothing yet."""
        self.path = path
        self._labels = array("B")

    def id_blocks(self) -> Iterator[list[bytes]]:
        """Yield the ids in order, and read the labels beside them.

        Raises:
            InputError: If the table is damaged, or a label is none of the words.
        """
        self._labels = array("B")
        for block in read_blocks(self.path, (ID, LABEL)):
            labels = block.read(LABEL, _label, np.uint8, f"one of {', '.join(WORDS)}")
            self._labels.frombytes(labels.tobytes())
            yield block.ids()

    @property
    def labels(self) -> NDArray[np.uint8]:
        """(N,) 1 for virus, 0 for others, once all ids were read."""
        return np.frombuffer(self._labels, np.uint8)


def _label(word: str) -> int:
    return WORDS[word.strip().lower()]
