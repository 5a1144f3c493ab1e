"""Tab-separated tables with a header, read a block of lines at a time.

Not by `pandas.read_csv`: it fills short lines up without a word, and a table that was cut off must
be refused. Every cell is the text that it is, ids such as NA and 007 included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from virnucpro_pl.errors import InputError

_LINES = 65_536


def read_table(
    path: Path,
    choose: Callable[[list[str]], list[int]],
    wanted: Callable[[str], bool] = lambda _: True,
) -> Iterator[pd.DataFrame]:
    """Yield some columns, a block of lines at a time: one block at least, indexed by line numbers.

    Args:
        path: The table.
        choose: Gives the places of these columns in the header, or refuses it.
        wanted: Whether lines with this first cell are read; the others may look as they like.

    Raises:
        InputError: If the file cannot be read, or a line has another number of columns.
    """
    try:
        with path.open(encoding="utf-8") as file:
            header = file.readline().rstrip("\n").split("\t")
            places = choose(header)
            for first in count(2, _LINES):
                lines = [line.rstrip("\n").split("\t") for line in islice(file, _LINES)]
                rows = {n: cells for n, cells in enumerate(lines, first) if wanted(cells[0])}
                for number, cells in rows.items():
                    if len(cells) != len(header):
                        raise InputError(
                            f"{path}, line {number}: {len(cells)} columns, not {len(header)}"
                        )
                if rows or first == 2:
                    chosen = [[cells[place] for place in places] for cells in rows.values()]
                    names = [header[place] for place in places]
                    yield pd.DataFrame(chosen, index=list(rows), columns=names, dtype=object)
                if len(lines) < _LINES:
                    return
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def read_columns(
    path: Path, names: Sequence[str], also: Sequence[str] = ()
) -> Iterator[pd.DataFrame]:
    """Yield columns by their names, a block of lines at a time.

    Args:
        path: The table.
        names: Columns that it must have.
        also: Columns that are read, too, if it has them.

    Raises:
        InputError: If a column is missing, or the table is damaged.
    """

    def places(header: list[str]) -> list[int]:
        if lacking := [name for name in names if name not in header]:
            given = ", ".join(header)
            raise InputError(f"{path} has no column {', '.join(lacking)}; it has {given}")
        return [header.index(name) for name in (*names, *also) if name in header]

    return read_table(path, places)


def parse(path: Path, texts: pd.Series, kind: Callable[[str], float]) -> NDArray[Any]:
    """Numbers of a column of a block; `kind` gives that of a text, or raises a ValueError.

    Raises:
        InputError: Names the line whose text is no number.
    """
    numbers = []
    for line, text in texts.items():
        try:
            numbers.append(kind(text))
        except ValueError as error:
            raise InputError(f"{path}, line {line}: {error}") from error
    return np.asarray(numbers)
