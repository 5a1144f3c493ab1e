"""What is drawn of a folder of results, read a block of lines at a time into columns of numbers.

Ids are kept of the records whose scores are drawn along their length, and of no others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from virnucpro_pl.errors import InputError, UsageError
from virnucpro_pl.input.orfs import plan_chunks
from virnucpro_pl.plot.tables import parse, read_table

CALLS = ("others", "virus", "NA")
"""Of a record; an index into it is its call."""
PREDICTIONS = "prediction_results.txt"
_ORF = r"(?s)\A(?P<record>.*)_chunk_(?P<chunk>\d+)..\Z"
"""Id of an ORF: behind its record and the chunk's number stands the frame."""


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


def read_results(path: Path, longest: int) -> Results:
    """Read a folder of results.

    Args:
        path: Folder that virnucpro.yaml or classify.yaml has written.
        longest: How many records to keep chunk by chunk.

    Raises:
        UsageError: If there are no results in it.
        InputError: If a table is damaged.
    """
    table = path / PREDICTIONS
    if not table.is_file():
        raise UsageError(
            f"{path} holds no results: it has no {PREDICTIONS}. Give a folder that virnucpro.yaml "
            "or classify.yaml has written, or an embedding file (.h5)"
        )
    summary = _read_json(path / "summary.json")
    beside = path.absolute()
    run = _read_json(beside.with_name(f"{beside.name}.run.json"))
    contigs = path / "contigs.tsv"
    records = None
    if contigs.is_file():
        size = int(summary.get("chunk_length") or 0)
        records, tracks = _read_contigs(contigs, longest, size)
    else:
        tracks = _most_chunks(table, longest)
    return Results(path, _read_scores(table, tracks), records, tracks, summary, run)


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


def _columns(path: Path, *names: str) -> Iterator[pd.DataFrame]:
    """Yield these columns of a table, a block of lines at a time; refuse it if one is missing."""

    def places(header: list[str]) -> list[int]:
        if lacking := [name for name in names if name not in header]:
            given = ", ".join(header)
            raise InputError(f"{path} has no column {', '.join(lacking)}; it has {given}")
        return [header.index(name) for name in names]

    return read_table(path, places)


def _read_contigs(path: Path, longest: int, size: int) -> tuple[Records, list[Track]]:
    """The columns of all records, and the longest ones with an ORF, their scores still NaN."""
    kinds: dict[str, Callable[[str], float]] = {
        "length": _count,
        "n_chunks": _count,
        "n_orfs": _count,
        "prediction": CALLS.index,
        "virus_score": lambda text: float("nan") if text == "NA" else float(text),
    }
    blocks, top = [], []
    for block in _columns(path, "seq_name", *kinds):
        numbers = block.assign(**{name: parse(path, block[name], kinds[name]) for name in kinds})
        blocks.append(numbers[["length", "virus_score", "prediction"]])
        top.append(_largest(numbers[numbers["n_orfs"] > 0], "length", longest))
    columns = pd.concat(blocks)
    records = Records(
        columns["length"].to_numpy(np.int64),
        columns["virus_score"].to_numpy(np.float32),
        columns["prediction"].to_numpy(np.int8),
    )
    return records, [
        _track(row.seq_name, CALLS[row.prediction], int(row.length), int(row.n_chunks), size)
        for row in _largest(pd.concat(top), "length", longest).itertuples()
    ]


def _largest(table: pd.DataFrame, column: str, number: int) -> pd.DataFrame:
    """The rows with the largest numbers; `nlargest` forgets the order of equal ones."""
    return table.sort_values(column, ascending=False, kind="stable").head(number)


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError(f"{number} is below 0")
    return number


def _most_chunks(path: Path, longest: int) -> list[Track]:
    """The records with most chunks, where no table tells lengths; their scores still NaN."""
    last = [
        _places(block["Sequence_ID"]).groupby("record", sort=False)["chunk"].max()
        for block in _columns(path, "Sequence_ID")
    ]
    chunks = pd.concat(last).groupby(level=0, sort=False).max().to_frame()
    most = _largest(chunks, "chunk", longest)["chunk"]
    return [_track(name, "", None, int(number), 0) for name, number in most.items()]


def _track(name: str, call: str, bases: int | None, n_chunks: int, size: int) -> Track:
    scores = np.full((n_chunks, 2), np.nan, np.float32)
    if bases is None or not size:
        begins = np.arange(n_chunks) + 0.5
        return Track(name, call, None, np.stack([begins, begins + 1], axis=1), scores)
    places = plan_chunks(bases, size).astype(np.float64)
    if len(places) != n_chunks:
        raise InputError(
            f"{name} has {n_chunks} chunks in contigs.tsv, but {len(places)} of {size} bases"
        )
    places[:, 1] += places[:, 0]
    return Track(name, call, bases, places, scores)


def _places(orfs: pd.Series) -> pd.DataFrame:
    """`record` and `chunk`, from 1, of the ORFs whose ids tell; indexed as they are."""
    places = orfs.str.extract(_ORF).dropna()
    places = places.assign(chunk=places["chunk"].map(int).astype(np.int64))
    return places[places["chunk"] > 0]


def _read_scores(path: Path, tracks: list[Track]) -> NDArray[np.float32]:
    """P(virus) (M,) of every ORF; the best scores of each chunk are entered into the tracks."""
    tracked = {track.name: track.scores for track in tracks}
    viral = []
    for block in _columns(path, "Sequence_ID", "score1", "score2"):
        columns = [parse(path, block[name], float) for name in ("score1", "score2")]
        scores = pd.DataFrame(np.stack(columns, axis=1).astype(np.float32), block.index)
        viral.append(scores[1].to_numpy())
        places = _places(block["Sequence_ID"])
        for name, chunks in places[places["record"].isin(list(tracked))].groupby("record")["chunk"]:
            best = tracked[name]
            if len(outside := chunks[chunks > len(best)]):
                line = outside.index[0]
                raise InputError(
                    f"{path}, line {line}: {block['Sequence_ID'][line]} lies outside the "
                    f"{len(best)} chunks that contigs.tsv gives its record"
                )
            np.fmax.at(best, chunks.to_numpy() - 1, scores.loc[chunks.index].to_numpy())
    return np.concatenate(viral)
