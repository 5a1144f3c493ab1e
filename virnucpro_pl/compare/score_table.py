"""VirNucPro's two prediction tables: read, joined by id, and compared."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro_pl.compare.rows import Named, Rows, describe_rows, named
from virnucpro_pl.embeddings.id_table import match_ids
from virnucpro_pl.errors import InputError
from virnucpro_pl.output.tables import HIGHEST_SCORE_HEADER, PREDICTION_HEADER

_LABELS = {
    PREDICTION_HEADER: ("others", "virus", "NA"),
    HIGHEST_SCORE_HEADER: ("False", "True", "NA"),
}
"""By header, the labels of a row: not viral, viral, not scored."""
KINDS = {PREDICTION_HEADER: "labels of ORFs", HIGHEST_SCORE_HEADER: "calls of chunks"}
_NOT_SCORED = 2
_ID_BLOCK = 65_536


def is_score_table(path: Path) -> bool:
    """Tell whether a file begins as one of the two tables."""
    longest = max(len(header) for header in KINDS)
    with path.open("rb") as file:
        return file.readline(longest).decode("latin-1").replace("\r", "") in KINDS


class ScoreTable:
    """Labels and scores of a table; its ids stay in the file and are read from there.

    Attributes:
        path: The file.
        kind: One of the values of KINDS.
        labels: (N,) uint8, index into the labels of its kind.
        scores: (N, 2) float32, P(others) and P(virus); (N, 0) in a table of calls.
    """

    def __init__(self, path: Path) -> None:
        """Read all numbers.

        Raises:
            InputError: If a line is not a row of the table.
        """
        self.path = path
        labels, scores = bytearray(), array("f")
        with path.open(encoding="utf-8", newline="\n") as file:
            header = file.readline().replace("\r", "")
        self.kind, names = KINDS[header], _LABELS[header]
        width = header.count("\t") - 1
        for number, fields in self._lines():
            try:
                labels.append(names.index(fields[1]))
                numbers = [float(text) for text in fields[2:]]
                if len(numbers) != width or not fields[0]:
                    raise ValueError("too many or too few columns")
            except (ValueError, IndexError) as error:
                raise InputError(
                    f"{path}, line {number}: {'  '.join(fields)!r} is no row of a table with the "
                    f"header {header.strip()!r}: {error}"
                ) from error
            scores.extend(numbers)
        self.labels: NDArray[np.uint8] = np.frombuffer(labels, np.uint8)
        self.scores: NDArray[np.float32] = np.asarray(scores, np.float32).reshape(
            len(labels), width
        )

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.labels)

    def _lines(self) -> Iterator[tuple[int, list[str]]]:
        """Yield number and fields of each line after the header."""
        try:
            with self.path.open(encoding="utf-8", newline="\n") as file:
                next(file)
                for number, line in enumerate(file, 2):
                    yield number, line.rstrip("\r\n").split("\t")
        except UnicodeDecodeError as error:
            raise InputError(f"{self.path} is not UTF-8 text: {error}") from error

    def id_blocks(self) -> Iterator[list[bytes]]:
        """Yield all ids in order, a block at a time."""
        ids = (fields[0].encode() for _, fields in self._lines())
        while block := list(islice(ids, _ID_BLOCK)):
            yield block


class TableDifference(NamedTuple):
    """All that is said of two tables; pairs are of A and of B."""

    rows: Rows
    flips: Named
    """Rows with different labels."""
    to_virus: int
    """Of those, rows that only B calls viral."""
    from_virus: int
    """Of those, rows that only A calls viral."""
    largest_change: float | None
    """Of a score; None without scores or rows."""
    largest_change_id: str | None
    mean_change: float | None
    """Of the scores, without sign."""


def compare_tables(a: ScoreTable, b: ScoreTable, scratch: Path) -> TableDifference:
    """Join two tables of one kind by id and compare them.

    Rows that one of them could not score, `NA`, are counted, not compared.

    Args:
        a: The table that the other is measured by.
        b: The other.
        scratch: An existing folder for the ids.

    Raises:
        InputError: If an id stands twice in a table.
    """
    match, first_ids, second_ids = match_ids((a, b), scratch)
    labels = np.stack([a.labels[match.first], b.labels[match.second]])  # (2, S)
    scores = np.stack([a.scores[match.first], b.scores[match.second]])  # (2, S, 2), or (2, S, 0)
    rows, compared = describe_rows(
        (len(a), len(b)),
        match,
        (first_ids, second_ids),
        np.all(np.isfinite(scores), axis=2),
        labels == _NOT_SCORED,
    )
    first = match.first[compared]
    before, after = labels[:, compared]
    changes = np.abs(scores[0, compared] - scores[1, compared])
    worst = int(changes.max(axis=1).argmax()) if changes.size else None
    return TableDifference(
        rows,
        named(first_ids, first[before != after]),
        int(np.count_nonzero(before < after)),
        int(np.count_nonzero(before > after)),
        None if worst is None else float(changes.max()),
        None if worst is None else first_ids(first[worst : worst + 1])[0],
        None if worst is None else float(changes.mean(dtype=np.float64)),
    )
