"""What `contigs.tsv` says of each record, as columns of numbers."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro_pl.errors import InputError, UsageError
from virnucpro_pl.evaluate.table_blocks import ID, NA, Block, read_blocks, share
from virnucpro_pl.output.contig_rule import CALLS, TIERS

PREDICTIONS = ("others", "virus", NA)
NOT_SCORED = PREDICTIONS.index(NA)
_MUST = (ID, "length", "prediction", "virus_score")
_RULE, _CALIBRATED = ("call", "tier"), ("virus_probability", "fdr")
_TYPES = {
    **{"length": "q", "prediction": "b", "virus_score": "f", "call": "b", "tier": "b"},
    **{"virus_probability": "d", "fdr": "d"},
}
"""By column, the type code of its numbers. A virus_score is a float32; the others are compared in
the decimals that the table states."""
_SHARE = "a number from 0 to 1, or NA"


class ContigTable:
    """The columns of `contigs.tsv` that can be judged; its ids go to the disk.

    Attributes:
        path: The table.
    """

    def __init__(self, results: Path) -> None:
        """Find the table; nothing is read yet.

        Args:
            results: The table, or the folder that predict has written.

        Raises:
            UsageError: If there is none.
        """
        self.path = results / "contigs.tsv" if results.is_dir() else results
        if not self.path.exists():
            raise UsageError(
                f"{results} has no contigs.tsv: give a folder that predict has written of contigs"
                if results.is_dir()
                else f"{results}: no such folder of results or table"
            )
        self._columns: dict[str, array[Any]] = {}

    def id_blocks(self) -> Iterator[list[bytes]]:
        """Yield the ids in order, and read the columns beside them.

        Raises:
            InputError: If the table is damaged.
        """
        self._columns = {}
        for block in read_blocks(self.path, _MUST, (*_RULE, *_CALIBRATED), ends=True):
            for name, numbers in _numbers(block).items():
                column = self._columns.setdefault(name, array(_TYPES[name]))
                column.frombytes(numbers.tobytes())
            yield block.ids()

    def __contains__(self, column: str) -> bool:
        """Tell whether the table has a column, once all ids were read."""
        return column in self._columns

    def __getitem__(self, column: str) -> NDArray[Any]:
        """Give a column (N,) that the table has, once all ids were read.

        `length` in bases; `prediction`, `call` and `tier` as indices into PREDICTIONS, CALLS and
        TIERS; the others are numbers from 0 to 1, and NaN of what has none.
        """
        return np.frombuffer(self._columns[column], _TYPES[column])


def _numbers(block: Block) -> dict[str, NDArray[Any]]:
    """Give the columns of a block.

    Raises:
        InputError: Names a line that cannot be right.
    """
    numbers = {}
    for name in block.columns.keys() - {ID}:
        words = {"prediction": PREDICTIONS, "call": CALLS, "tier": TIERS}.get(name)
        if words is not None:
            places = {word: place for place, word in enumerate(words)}
            numbers[name] = block.read(name, places.__getitem__, np.int8, _one_of(words))
        elif name == "length":
            numbers[name] = block.read(name, _length, np.int64, "a number of bases")
        else:
            numbers[name] = block.read(name, share, _TYPES[name], _SHARE)
    unscored = np.isnan(numbers["virus_score"])
    odd = np.flatnonzero(unscored != (numbers["prediction"] == NOT_SCORED))
    if len(odd):
        raise InputError(
            f"{block.path}, line {block.first + odd[0]}: virus_score and prediction are NA "
            "together or not at all"
        )
    return numbers


def _one_of(words: tuple[str, ...]) -> str:
    return f"one of {', '.join(words)}"


def _length(cell: str) -> int:
    if not cell.isdecimal():
        raise ValueError(cell)
    return int(cell)
