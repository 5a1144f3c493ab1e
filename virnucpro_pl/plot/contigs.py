"""What is drawn and listed of `contigs.tsv`, read a block of lines at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from virnucpro_pl.errors import UsageError, listed
from virnucpro_pl.plot.tables import parse, read_columns

CALLS = ("others", "virus", "NA")
"""Of a record; an index into it is its call."""
LISTED = 20
"""Records with the highest scores that are listed, or more if more of them are drawn."""
_TEXTS = ("call", "tier")
"""Columns that are listed where the table has them."""
SAMPLED = "n_sampled"
"""Of the chunks; a table of an earlier version has no such column, and all were computed."""


class Choice(NamedTuple):
    """Which records are drawn along their length: any of these, each once."""

    records: tuple[str, ...] = ()
    """Ids."""
    top: int = 6
    """How many of those with the highest virus_score."""
    longest: int = 6
    """How many of the longest."""


class Records(NamedTuple):
    """Columns of `contigs.tsv`."""

    lengths: NDArray[np.int64]
    """(R,) bases."""
    virus_score: NDArray[np.float32]
    """(R,) NaN without one."""
    calls: NDArray[np.int8]
    """(R,) index into CALLS."""


class Contigs(NamedTuple):
    """What is kept of `contigs.tsv`."""

    records: Records
    drawn: pd.DataFrame
    """Rows to draw: those asked for, then those of the highest score, then the longest."""
    best: pd.DataFrame
    """Rows to list: those of the highest score, equal ones by id."""


def read_contigs(path: Path, choice: Choice) -> Contigs:
    """Read the numbers of all records, and whole rows of some.

    Args:
        path: `contigs.tsv`.
        choice: Which records to draw.

    Raises:
        UsageError: If a record that was asked for is not there, or has no chunk to draw.
        InputError: If the table is damaged.
    """
    blocks, kept = [], []
    for block in read_columns(path, ["seq_name", *_KINDS], (*_TEXTS, SAMPLED)):
        rows = block.assign(**{name: parse(path, block[name], _KINDS[name]) for name in _KINDS})
        sampled = parse(path, block[SAMPLED], _count) if SAMPLED in block else rows["n_chunks"]
        rows = rows.assign(**{SAMPLED: sampled})
        blocks.append(rows[["length", "virus_score", "prediction"]])
        kept.append(_once(pd.concat(_chosen(rows, choice))))
    columns = pd.concat(blocks)
    records = Records(
        columns["length"].to_numpy(np.int64),
        columns["virus_score"].to_numpy(np.float32),
        columns["prediction"].to_numpy(np.int8),
    )
    asked, best, longest = _chosen(pd.concat(kept).sort_index(), choice)
    check_asked(choice.records, asked["seq_name"], path)
    if len(empty := asked.loc[asked["n_chunks"] == 0, "seq_name"]):
        raise UsageError(f"--records: no chunk of {listed(list(empty))}, so nothing to draw")
    return Contigs(records, _once(pd.concat([asked, best.head(choice.top), longest])), best)


def check_asked(asked: Sequence[str], found: Iterable[str], path: Path) -> None:
    """Refuse records that a table has not.

    Raises:
        UsageError: Names them.
    """
    there = set(found)
    if absent := [name for name in asked if name not in there]:
        raise UsageError(f"--records: {path} has no record {listed(absent)}")


def _chosen(rows: pd.DataFrame, choice: Choice) -> tuple[pd.DataFrame, ...]:
    """The rows asked for, in that order, those of the highest score, and the longest."""
    order = {name: place for place, name in enumerate(choice.records)}
    asked = rows[rows["seq_name"].isin(list(order))]
    scored = rows[rows["virus_score"].notna()]
    return (
        asked.sort_values("seq_name", key=lambda names: names.map(order)),
        scored.sort_values(["virus_score", "seq_name"], ascending=[False, True]).head(
            max(choice.top, LISTED)
        ),
        # `nlargest` forgets the order of equal ones.
        rows[rows["n_orfs"] > 0]
        .sort_values("length", ascending=False, kind="stable")
        .head(choice.longest),
    )


def _once(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows without those that stand there again; each has its line's number as its index."""
    return rows[~rows.index.duplicated()]


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError(f"{number} is below 0")
    return number


_KINDS: dict[str, Callable[[str], float]] = {
    "length": _count,
    "n_chunks": _count,
    "n_orfs": _count,
    "n_viral_chunks": _count,
    "prediction": CALLS.index,
    "virus_score": lambda text: float("nan") if text == "NA" else float(text),
}
"""How the texts of a column are read."""
