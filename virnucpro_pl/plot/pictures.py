"""Which pictures are drawn of results and of an embedding file, and what their page says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from virnucpro_pl.embeddings.embedding_file import EmbeddingFile
from virnucpro_pl.plot.contigs import CALLS, SAMPLED, Choice
from virnucpro_pl.plot.embedding_map import color_by_length, color_by_table, draw_map, read_sample
from virnucpro_pl.plot.figures import (
    draw_length_shares,
    draw_phases,
    draw_scores,
    draw_track,
    make_picture,
)
from virnucpro_pl.plot.names import file_names
from virnucpro_pl.plot.page import Listing, Picture, make_page
from virnucpro_pl.plot.results import PREDICTIONS, Results, read_results
from virnucpro_pl.version import __version__

_SCORE = "score2"
_LISTED = {
    **{"seq_name": "Record", "length": "Bases", "n_chunks": "Chunks", SAMPLED: "Sampled"},
    **{"n_viral_chunks": "Viral chunks", "virus_score": "virus_score"},
    **{"prediction": "Prediction", "call": "Call", "tier": "Tier"},
}
"""Columns of `contigs.tsv` that are listed, and their headings."""
_RUN_FACTS = (
    "tokens_per_second pack_fill failure_rate resumed_records devices device precision attention "
    "python_version torch_version package_version"
).split()
_MODEL_FACTS = (
    "model classifier model_dnabert_s model_esm2 chunk_length threshold input_sha256 "
    "classifier_sha256 weights_sha256_dnabert_s weights_sha256_esm2"
).split()


def draw_results(
    path: Path, choice: Choice, color: str | None, table: Path | None
) -> tuple[list[Picture], str]:
    """Pictures of a folder of results, and the page with all of them.

    Args:
        path: The folder.
        choice: Which records are drawn along their length.
        color: As in `plot`.
        table: As in `plot`.
    """
    results = read_results(path, choice)
    names = file_names(track.name for track in results.tracks)
    pictures = list(_pictures(results, names, color, table))
    return pictures, _results_page(results, names, pictures)


def draw_embeddings(path: Path, color: str | None, table: Path | None) -> tuple[list[Picture], str]:
    """The picture of an embedding file, and its page; the options are `plot`'s."""
    picture = _map(path, "map", color, table)
    file = EmbeddingFile(path)
    facts: dict[str, Any] = {"rows": len(file), "width": file.width}
    for name, value in file.attributes.items():
        if name != "config":
            facts[name] = value.item() if hasattr(value, "item") else value
    lead = f"{len(file):,} embeddings of {file.width:,} numbers."
    file.close()
    title, tables = f"Embeddings: {path.name}", {"Embedding file": facts}
    return [picture], make_page(title, lead, [picture], tables, [], [], __version__)


def _pictures(
    results: Results, names: Mapping[str, str], color: str | None, table: Path | None
) -> Iterator[Picture]:
    records = results.records
    if len(results.orf_scores):
        yield make_picture("scores", "Distribution of scores", partial(draw_scores, results))
    if records is not None and len(records.lengths):
        bars = partial(draw_length_shares, records)
        yield make_picture("calls_by_length", "Calls by length", bars)
    for track in results.tracks:
        line = partial(draw_track, track)
        yield make_picture(names[track.name], f"Along {track.name}", line)
    if color is None:
        color, table = _SCORE, results.path / PREDICTIONS
    for name in ("dnabert_s", "esm2"):
        file = results.path / f"{name}.h5"
        if file.is_file() and len(results.orf_scores) > 1:
            yield _map(file, f"map_{name}", color, table)
    if seconds := results.run.get("seconds"):
        bars = partial(draw_phases, seconds)
        yield make_picture("phases", "Where the time went", bars, of_run=True)


def _map(path: Path, name: str, color: str | None, table: Path | None) -> Picture:
    file = EmbeddingFile(path)
    try:
        sample = read_sample(file)
        if table is None or color is None:
            shade = color_by_length(file, sample)
        else:
            shade = color_by_table(file, sample, table, color)
        model = str(file.attributes.get("model", path.name))
    finally:
        file.close()
    return make_picture(name, f"Map of {path.name}", partial(draw_map, sample, shade, model))


def _results_page(results: Results, names: Mapping[str, str], pictures: list[Picture]) -> str:
    summary, run, name = results.summary, results.run, results.path.absolute().name
    missing = [
        f"{file} is missing: what it would tell is left out."
        for file, content in (
            ("summary.json", summary),
            (f"{name}.run.json beside the folder", run),
        )
        if not content
    ]
    if results.records is None:
        missing.append(
            "There is no contigs.tsv, as after classify.yaml: no calls and scores of records."
        )
    orfs = {key: summary[key] for key in ("orfs", "orfs_scored") if key in summary}
    tables = {
        "What became of the input": {
            **_parts("Records", summary, "records"),
            **_parts("Chunks", summary, "chunks"),
            **{key.replace("_", " "): value for key, value in orfs.items()},
            **{f"ORFs: {key}": lost for key, lost in summary.get("orfs_skipped", {}).items()},
        },
        "The run": {
            **{f"{key} in all": value for key, value in run.get("totals", {}).items()},
            **{key: run[key] for key in _RUN_FACTS if run.get(key) is not None},
        },
        "Models and input": {
            key: summary[key] for key in _MODEL_FACTS if summary.get(key) is not None
        },
    }
    return make_page(
        f"VirNucPro results: {name}",
        _lead(results),
        pictures,
        tables,
        summary.get("warnings", []),
        missing,
        __version__,
        _listing(results, names),
    )


def _listing(results: Results, names: Mapping[str, str]) -> Listing | None:
    """The records of the highest score, with those columns that their table has."""
    best = results.best
    if not len(best):
        return None
    listed = [name for name in _LISTED if name in best]
    if (best[SAMPLED] == best["n_chunks"]).all():
        listed.remove(SAMPLED)
    columns = {name: best[name].tolist() for name in listed}
    columns["virus_score"] = [f"{score:.4f}" for score in best["virus_score"]]
    columns["prediction"] = [CALLS[call] for call in best["prediction"]]
    header = [_LISTED[name] for name in columns]
    rows = list(zip(*columns.values(), strict=True))
    return Listing("Highest scores", header, rows, names)


def _parts(label: str, summary: dict[str, Any], key: str) -> dict[str, Any]:
    """A count, and the parts that add up to it."""
    counts = {label: summary[key]} if key in summary else {}
    for kind in ("status", "prediction"):
        for name, number in summary.get(f"{key}_by_{kind}", {}).items():
            counts[f"{label} with {kind} {name}"] = number
    return counts


def _lead(results: Results) -> str:
    orfs = f"{len(results.orf_scores):,} open reading frames."
    if results.records is None:
        return orfs
    calls = results.records.calls
    virus, others, none = ((calls == call).sum() for call in (1, 0, 2))
    return (
        f"{len(calls):,} records: {virus:,} called virus, {others:,} others, {none:,} without a "
        f"score. {orfs}"
    )
