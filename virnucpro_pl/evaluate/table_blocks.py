"""Tab-separated tables with a header and a column of ids, read some lines at a time.

Plain or compressed, from a file or a pipe, with line ends of any system. A table that was cut off
or edited amiss is refused with the line, since a row read wrongly would be measured wrongly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from virnucpro_pl.errors import InputError
from virnucpro_pl.input.text import DAMAGED, open_text

ID = "seq_name"
"""Column of the ids."""
NA = "NA"
"""What has no value."""
_LINES = 1 << 14
_BOM = "\xef\xbb\xbf"
"""A byte order mark, as it looks in Latin-1."""


class Block(NamedTuple):
    """Some lines of a table."""

    path: Path
    first: int
    """Number of the first line, from 1."""
    columns: dict[str, list[str]]
    """Cells by the column's name; each character is a byte."""

    def ids(self) -> list[bytes]:
        """Give the ids, UTF-8.

        Raises:
            InputError: If one is empty or no text.
        """
        ids = [cell.encode("latin-1") for cell in self.columns[ID]]
        for line, name in enumerate(ids, self.first):
            if not name:
                raise InputError(f"{self.path}, line {line}: there is no {ID}")
            if not name.isascii():
                try:
                    name.decode()
                except UnicodeDecodeError as error:
                    raise InputError(f"{self.path}, line {line}: no UTF-8 text: {error}") from error
        return ids

    def read(
        self, column: str, kind: Callable[[str], Any], dtype: DTypeLike, words: str
    ) -> NDArray[Any]:
        """Give the values of a column.

        Args:
            column: Its name.
            kind: Gives the value of a cell; ValueError or KeyError if it has none.
            dtype: Of the values.
            words: What a cell may be, for the message.

        Raises:
            InputError: Names the line whose cell is something else.
        """
        cells = self.columns[column]
        try:
            return np.fromiter(map(kind, cells), dtype, len(cells))
        except (ValueError, KeyError, OverflowError):
            for line, cell in enumerate(cells, self.first):
                try:
                    np.fromiter([kind(cell)], dtype, 1)
                except (ValueError, KeyError, OverflowError) as error:
                    raise InputError(
                        f"{self.path}, line {line}: {cell!r} in column {column} is not {words}"
                    ) from error
            raise


def read_blocks(
    path: Path, columns: Sequence[str], also: Sequence[str] = (), *, ends: bool = False
) -> Iterator[Block]:
    """Yield the lines behind the header, some at a time.

    Args:
        path: The table.
        columns: Those that it must have, at any place; others are passed over.
        also: Columns that are read if it has them.
        ends: Whether the last line must have an end, as whatever a program has written whole.

    Raises:
        InputError: If the table cannot be read, lacks a column, or has a line with another number
            of columns.
    """
    try:
        with path.open("rb") as file, open_text(file) as text:
            header = next(text, "").removeprefix(_BOM).rstrip("\n").split("\t")
            places = _places(path, header, columns, also)
            for first in count(2, _LINES):
                lines = list(islice(text, _LINES))
                while lines and not ends and len(lines) < _LINES and not lines[-1].strip():
                    lines.pop()  # blank ones at the end of what a hand has written
                if not lines:
                    return
                _check(path, first, lines, len(header), ends)
                # Not a list for each line: millions of them keep the garbage collector busy.
                cells = "".join(lines).replace("\n", "\t").split("\t")[: len(lines) * len(header)]
                chosen = {name: cells[at :: len(header)] for name, at in places.items()}
                yield Block(path, first, chosen)
    except DAMAGED as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def share(cell: str) -> float:
    """Read a number from 0 to 1, or NaN of `NA`.

    Raises:
        ValueError: If it is neither.
    """
    if cell == NA:
        return float("nan")
    number = float(cell)
    if not 0 <= number <= 1:
        raise ValueError(cell)
    return number


def _check(path: Path, first: int, lines: list[str], width: int, ends: bool) -> None:
    """Refuse lines with another number of columns, and a last one without an end."""
    for line, text in enumerate(lines, first):
        if text.count("\t") != width - 1:
            columns = text.count("\t") + 1
            raise InputError(
                f"{path}, line {line}: {columns} column(s), but the header has {width}"
            )
    if ends and not lines[-1].endswith("\n"):
        raise InputError(f"{path}, line {first + len(lines) - 1}: the table was cut off here")


def _places(
    path: Path, header: list[str], columns: Sequence[str], also: Sequence[str]
) -> dict[str, int]:
    """Find columns in the header.

    Raises:
        InputError: If one is missing, or there twice.
    """
    if header == [""]:
        raise InputError(f"{path}, line 1: no header; the table begins with {', '.join(columns)}")
    wanted = [name for name in (*columns, *also) if name in header]
    lacking = [name for name in columns if name not in header]
    if lacking or (twice := [name for name in wanted if header.count(name) > 1]):
        what = f"no column {', '.join(lacking)}" if lacking else f"column {twice[0]} is there twice"
        given = ", ".join(header)[:200]
        raise InputError(f"{path}, line 1: {what}; the columns, parted by tabs, are {given}")
    return {name: header.index(name) for name in wanted}
