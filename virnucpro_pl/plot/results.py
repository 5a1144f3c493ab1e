"""What is drawn of a folder of results, read a block of lines at a time into columns of numbers.

Ids are kept of the records that are drawn along their length or listed, and of no others.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from virnucpro_pl.errors import InputError, UsageError
from virnucpro_pl.input.orfs import is_sampled, plan_chunks
from virnucpro_pl.plot.contigs import CALLS, Choice, Records, check_asked, read_contigs
from virnucpro_pl.plot.tables import parse, read_columns

PREDICTIONS = "prediction_results.txt"
_ORF = r"(?s)\A(?P<record>.*)_chunk_(?P<chunk>\d+)..\Z"
"""Id of an ORF: behind its record and the chunk's number stands the frame."""


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
    sampled: NDArray[np.bool_]
    """(n,) whether the chunk was computed."""

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
    """The records to draw: those asked for, those of the highest score, the longest."""
    best: pd.DataFrame
    """Rows of `contigs.tsv` with the highest virus_score, highest first; none without the table."""
    summary: dict[str, Any]
    """`summary.json`, empty without it."""
    run: dict[str, Any]
    """`<folder>.run.json`, empty without it."""

    @property
    def threshold(self) -> float | None:
        """Least virus_score of a record called virus; None where the run had another rule."""
        threshold = self.summary.get("threshold", 0.5)
        return None if threshold is None else float(threshold)


def read_results(path: Path, choice: Choice) -> Results:
    """Read a folder of results.

    Args:
        path: Folder that virnucpro.yaml or classify.yaml has written.
        choice: Which records to keep chunk by chunk.

    Raises:
        UsageError: If there are no results in it, or not a record that was asked for.
        InputError: If a table is damaged.
    """
    table = path / PREDICTIONS
    if not table.is_file():
        raise UsageError(
            f"{path} holds no results: it has no {PREDICTIONS}. Give a folder that virnucpro.yaml, "
            "classify.yaml or fit has written, or an embedding file (.h5)"
        )
    summary = read_json(path / "summary.json")
    beside = path.absolute()
    run = read_json(beside.with_name(f"{beside.name}.run.json"))
    records, best = None, pd.DataFrame()
    if (path / "contigs.tsv").is_file():
        records, drawn, best = read_contigs(path / "contigs.tsv", choice)
        size = int(summary.get("chunk_length") or 0)
        tracks = [
            _track(
                row.seq_name,
                CALLS[row.prediction],
                int(row.length),
                int(row.n_chunks),
                int(row.n_sampled),
                size,
            )
            for row in drawn.itertuples()
        ]
    else:
        tracks = _most_chunks(table, choice)
    return Results(path, _read_scores(table, tracks), records, tracks, best, summary, run)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one if there is no such file.

    Raises:
        InputError: If it is something else.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object")
    return content


def _most_chunks(path: Path, choice: Choice) -> list[Track]:
    """The records asked for, and those with most chunks, where no table tells lengths and scores.

    Their scores are still NaN.
    """
    last = [
        _places(block["Sequence_ID"]).groupby("record", sort=False)["chunk"].max()
        for block in read_columns(path, ["Sequence_ID"])
    ]
    chunks = pd.concat(last).groupby(level=0, sort=False).max()
    check_asked(choice.records, chunks.index, path)
    most = chunks.sort_values(ascending=False, kind="stable").head(choice.longest)
    names = dict.fromkeys([*choice.records, *most.index])
    return [_track(name, "", None, int(chunks[name]), int(chunks[name]), 0) for name in names]


def _track(
    name: str, call: str, bases: int | None, n_chunks: int, n_sampled: int, size: int
) -> Track:
    if not min(n_chunks, 1) <= n_sampled <= n_chunks:
        raise InputError(f"{name} has a sample of {n_sampled} of {n_chunks} chunks in contigs.tsv")
    scores = np.full((n_chunks, 2), np.nan, np.float32)
    sampled = is_sampled(np.arange(n_chunks), np.full(n_chunks, n_chunks), n_sampled)
    if bases is None or not size:
        begins = np.arange(n_chunks) + 0.5
        return Track(name, call, None, np.stack([begins, begins + 1], axis=1), scores, sampled)
    places = plan_chunks(bases, size).astype(np.float64)
    if len(places) != n_chunks:
        raise InputError(
            f"{name} has {n_chunks} chunks in contigs.tsv, but {len(places)} of {size} bases"
        )
    places[:, 1] += places[:, 0]
    return Track(name, call, bases, places, scores, sampled)


def _places(orfs: pd.Series) -> pd.DataFrame:
    """`record` and `chunk`, from 1, of the ORFs whose ids tell; indexed as they are."""
    places = orfs.str.extract(_ORF).dropna()
    places = places.assign(chunk=places["chunk"].map(int).astype(np.int64))
    return places[places["chunk"] > 0]


def _read_scores(path: Path, tracks: list[Track]) -> NDArray[np.float32]:
    """P(virus) (M,) of every ORF; the best scores of each chunk are entered into the tracks."""
    tracked = {track.name: track for track in tracks}
    viral = []
    for block in read_columns(path, ["Sequence_ID", "score1", "score2"]):
        columns = [parse(path, block[name], float) for name in ("score1", "score2")]
        scores = pd.DataFrame(np.stack(columns, axis=1).astype(np.float32), block.index)
        viral.append(scores[1].to_numpy())
        orfs = block["Sequence_ID"]
        drawn = orfs[[name.rpartition("_chunk_")[0] in tracked for name in orfs]]
        for name, chunks in _places(drawn).groupby("record")["chunk"]:
            track = tracked[name]
            _check_places(path, orfs, chunks, track.sampled)
            np.fmax.at(track.scores, chunks.to_numpy() - 1, scores.loc[chunks.index].to_numpy())
    return np.concatenate(viral)


def _check_places(path: Path, orfs: pd.Series, chunks: pd.Series, sampled: NDArray[Any]) -> None:
    """Refuse ORFs of one record whose chunks, from 1, its row of `contigs.tsv` does not have.

    Raises:
        InputError: Names the first of them.
    """
    if len(outside := chunks[chunks > len(sampled)]):
        where = f"lies outside the {len(sampled)} chunks that contigs.tsv gives its record"
    elif len(outside := chunks[~sampled[chunks - 1]]):
        where = f"lies in none of the {sampled.sum()} chunks of its record's sample by contigs.tsv"
    else:
        return
    line = outside.index[0]
    raise InputError(f"{path}, line {line}: {orfs[line]} {where}")
