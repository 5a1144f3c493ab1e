"""What is drawn of a folder of results, read a line at a time into columns of numbers.

Ids are kept of the records whose scores are drawn along their length, and of no others.
"""

from __future__ import annotations

import heapq
import json
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro_pl.errors import InputError, UsageError
from virnucpro_pl.input.orfs import plan_chunks

CALLS = ("others", "virus", "NA")
"""Of a record; an index into it is its call."""
_PREDICTIONS = "prediction_results.txt"


class Records(NamedTuple):
    """Columns of `contigs.tsv`."""

    lengths: NDArray[np.int64]
    """(R,) bases."""
    virus_score: NDArray[np.float32]
    """(R,) NaN without one."""
    calls: NDArray[np.int8]
    """(R,) index into CALLS."""


class Track(NamedTuple):
    """The chunks of one record, in their order."""

    name: str
    """Id of the record."""
    call: str
    """One of CALLS; empty where no table tells."""
    bases: int | None
    """Length of the record; None where no table tells: places are then chunk numbers."""
    places: NDArray[np.float64]
    """(n, 2) begin and end of each chunk, in bases from 0, or in chunks."""
    scores: NDArray[np.float32]
    """(n, 2) best P(others) and best P(virus) over a chunk's frames; NaN without an ORF."""

    @property
    def viral(self) -> NDArray[np.bool_]:
        """(n,) whether the chunk is called virus, as in `prediction_results_highestscore.csv`."""
        return np.asarray(self.scores[:, 1] >= self.scores[:, 0])


class Results(NamedTuple):
    """What is drawn of a folder."""

    path: Path
    orf_scores: NDArray[np.float32]
    """(M,) P(virus) of each ORF; NaN where it could not be scored."""
    records: Records | None
    """None in a folder of classify.yaml, which knows ORFs only."""
    tracks: list[Track]
    """The longest records, longest first."""
    summary: dict[str, Any]
    """`summary.json`, empty without it."""
    run: dict[str, Any]
    """`<folder>.run.json`, empty without it."""

    @property
    def threshold(self) -> float:
        """Least virus_score of a record called virus."""
        return float(self.summary.get("threshold", 0.5))


class _Chosen(NamedTuple):
    name: str
    call: str
    bases: int | None
    n_chunks: int


def read_results(path: Path, longest: int) -> Results:
    """Read a folder of results.

    Args:
        path: Folder that virnucpro.yaml or classify.yaml has written.
        longest: How many records to keep chunk by chunk.

    Raises:
        UsageError: If there are no results in it.
        InputError: If a table is damaged.
    """
    table = path / _PREDICTIONS
    if not table.is_file():
        raise UsageError(
            f"{path} holds no results: it has no {_PREDICTIONS}. Give a folder that virnucpro.yaml "
            "or classify.yaml has written, or an embedding file (.h5)"
        )
    summary = _read_json(path / "summary.json")
    beside = path.absolute()
    run = _read_json(beside.with_name(f"{beside.name}.run.json"))
    contigs = path / "contigs.tsv"
    if contigs.is_file():
        records, chosen = _read_contigs(contigs, longest)
    else:
        records, chosen = None, _most_chunks(table, longest)
    size = int(summary.get("chunk_length") or 0)
    scores, best = _read_scores(table, chosen)
    tracks = [_track(of, best[of.name], size) for of in chosen]
    return Results(path, scores, records, tracks, summary, run)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object")
    return content


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and these columns of a tab-separated table with a header.

    Raises:
        InputError: If a column is missing, or a line has another number of columns.
    """
    try:
        with path.open(encoding="utf-8") as file:
            header = file.readline().rstrip("\n").split("\t")
            lacking = [name for name in columns if name not in header]
            if lacking:
                raise InputError(
                    f"{path} has no column {', '.join(lacking)}; it has {', '.join(header)}"
                )
            places = [header.index(name) for name in columns]
            for number, line in enumerate(file, 2):
                cells = line.rstrip("\n").split("\t")
                if len(cells) != len(header):
                    raise InputError(
                        f"{path}, line {number}: {len(cells)} columns, not {len(header)}"
                    )
                yield number, [cells[place] for place in places]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _read_contigs(path: Path, longest: int) -> tuple[Records, list[_Chosen]]:
    lengths, scores, calls = array("q"), array("f"), array("b")
    top: list[tuple[int, int, _Chosen]] = []
    names = ("seq_name", "length", "n_chunks", "n_orfs", "prediction", "virus_score")
    for number, (name, bases, chunks, orfs, call, score) in _rows(path, names):
        try:
            lengths.append(int(bases))
            scores.append(float("nan") if score == "NA" else float(score))
            calls.append(CALLS.index(call))
            entry = (int(bases), -number, _Chosen(name, call, int(bases), int(chunks)))
            has_orf = int(orfs) > 0
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {error}") from error
        if has_orf and longest:
            (heapq.heappush if len(top) < longest else heapq.heappushpop)(top, entry)
    records = Records(
        np.asarray(lengths, np.int64), np.asarray(scores, np.float32), np.asarray(calls, np.int8)
    )
    return records, [chosen for _, _, chosen in sorted(top, reverse=True)]


def _most_chunks(path: Path, longest: int) -> list[_Chosen]:
    """Choose the records with most chunks where no table tells lengths."""
    last: Counter[str] = Counter()
    for _, (orf,) in _rows(path, ("Sequence_ID",)):
        record, chunk = _place(orf)
        if chunk:
            last[record] = max(last[record], chunk)
    return [_Chosen(name, "", None, chunks) for name, chunks in last.most_common(longest)]


def _place(orf: str) -> tuple[str, int]:
    """Record and chunk number, from 1, of an ORF; chunk 0 where the id does not tell."""
    record, _, chunk = orf[:-2].rpartition("_chunk_")
    return (record, int(chunk)) if chunk.isdecimal() else (orf, 0)


def _read_scores(
    path: Path, chosen: list[_Chosen]
) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
    """P(virus) of every ORF, and the best two scores (n, 2) of each chunk of some records."""
    scores = array("f")
    best = {of.name: np.full((of.n_chunks, 2), np.nan, np.float32) for of in chosen}
    for number, (orf, others, virus) in _rows(path, ("Sequence_ID", "score1", "score2")):
        try:
            pair = (float(others), float(virus))
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {error}") from error
        scores.append(pair[1])
        record, chunk = _place(orf)
        if record in best and chunk:
            if chunk > len(best[record]):
                raise InputError(
                    f"{path}, line {number}: {orf} lies outside the {len(best[record])} chunks "
                    "that contigs.tsv gives its record"
                )
            row = best[record][chunk - 1]
            np.fmax(row, pair, out=row)
    return np.asarray(scores, np.float32), best


def _track(of: _Chosen, scores: NDArray[np.float32], size: int) -> Track:
    chunks = np.arange(of.n_chunks, dtype=np.float64)
    places = np.stack([chunks + 0.5, chunks + 1.5], axis=1)
    if of.bases is None or not size:
        return Track(of.name, of.call, None, places, scores)
    plan = plan_chunks(of.bases, size).astype(np.float64)
    if len(plan) != of.n_chunks:
        raise InputError(
            f"{of.name} has {of.n_chunks} chunks in contigs.tsv, but {len(plan)} of {size} bases"
        )
    plan[:, 1] += plan[:, 0]
    return Track(of.name, of.call, of.bases, plan, scores)
