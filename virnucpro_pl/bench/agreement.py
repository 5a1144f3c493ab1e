"""How far the results of two runs are apart, of which the second has more rows of the same kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from virnucpro_pl.compare.score_table import ScoreTable, compare_tables
from virnucpro_pl.errors import OutputError

_COMPARED = 1024
"""Rows of a block in which vectors are compared."""


def vectors_apart(one: Path, several: Path, count: int) -> float:
    """Largest difference between vectors of two files, as far as the first goes.

    Raises:
        OutputError: If the second does not hold exactly the ids 0, 1, ... in this order.
    """
    largest = 0.0
    with h5py.File(one) as a, h5py.File(several) as b:
        ids = b["sequence_ids"]
        _check_ids(several, ids.asstr()[:].tolist(), count)
        for start in range(0, len(a["embeddings"]), _COMPARED):
            first = a["embeddings"][start : start + _COMPARED]
            apart = np.abs(first - b["embeddings"][start : start + len(first)])
            largest = max(largest, float(apart.max(initial=0.0)))
    return largest


def scores_apart(one: Path, several: Path, count: int) -> float:
    """Largest difference between scores of ORFs in two folders of calls, as far as the first goes.

    Raises:
        OutputError: If the second does not call exactly the records 0, 1, ... in this order, or
            lacks an ORF of the first.
    """
    with (several / "contigs.tsv").open() as file:
        ids = [line.split("\t", 1)[0] for line in file][1:]
    _check_ids(several, ids, count)
    a, b = (ScoreTable(folder / "prediction_results.txt") for folder in (one, several))
    found = compare_tables(a, b, several.parent)
    if found.rows.compared != len(a):
        raise OutputError(f"{several} lacks ORFs of {one}: {found.rows}")
    return found.largest_change or 0.0


def _check_ids(path: Path, ids: Sequence[str], count: int) -> None:
    if len(ids) != count:
        raise OutputError(f"{path} has {len(ids)} rows, its input {count}")
    for row, name in enumerate(ids):
        if name != str(row):
            raise OutputError(f"{path} has other ids than its input from row {row} on")
