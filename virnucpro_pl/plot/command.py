"""`virnucpro-pl plot`: pictures of results or of an embedding file, and one page with all of them.

matplotlib is imported when something is drawn, so that no other command needs it.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from virnucpro_pl.embeddings.embedding_file import EmbeddingFile
from virnucpro_pl.errors import UsageError, listed
from virnucpro_pl.output.files import published
from virnucpro_pl.output.overlap import refuse_inputs
from virnucpro_pl.plot.page import Picture, make_page
from virnucpro_pl.plot.results import Results, read_results
from virnucpro_pl.version import __version__

log = logging.getLogger(__name__)

PAGE = "index.html"
SCORE = "score2"
_OURS = re.compile(r"index\.html|(scores|calls_by_length|phases|contig_\d+|map(_\w+)?)\.png")
"""Files that a folder of this command may hold."""
_RUN_FACTS = (
    *("tokens_per_second", "pack_fill", "failure_rate", "resumed_records", "devices", "device"),
    *("precision", "attention", "python_version", "torch_version", "package_version"),
)
_MODEL_FACTS = (
    *("model", "classifier", "model_dnabert_s", "model_esm2", "chunk_length", "threshold"),
    *("input_sha256", "classifier_sha256", "weights_sha256_dnabert_s", "weights_sha256_esm2"),
)


def plot(
    path: Path,
    output: Path | None = None,
    longest: int = 6,
    color: str | None = None,
    table: Path | None = None,
) -> None:
    """Draw a folder of results, or an embedding file, as PNG files and one HTML page.

    Results: how scores are distributed, the score along the longest records chunk by chunk, the
    share of calls by length, and the figures of the run. Embeddings (also those in the folder): a
    map by their first two principal components, of 20,000 random rows at most.

    Args:
        path: Folder that virnucpro.yaml or classify.yaml has written, or an embedding file.
        output: Folder to write; `<path>.pictures` by default. Pictures that are there are replaced.
        longest: How many records to draw along their length.
        color: What colours a map: `length`, or a column of the table. By default score2 where there
            are results, else the length.
        table: Tab-separated table with a header, whose first column is the id.
    """
    if longest < 0:
        raise UsageError(f"--longest must be at least 0, not {longest}")
    if color not in (None, "length") and table is None:
        raise UsageError(f"--color {color} names a column: give its table with --table FILE.tsv")
    if table is not None and color in (None, "length"):
        raise UsageError("--table needs the column that colours the map: give --color COLUMN")
    if not path.exists():
        raise UsageError(f"{path}: no such folder of results or embedding file")
    _check_matplotlib()
    folder = Path(f"{os.path.normpath(path)}.pictures") if output is None else output
    pictures_there = folder.iterdir() if folder.is_dir() else ()
    refuse_inputs([folder, *pictures_there], [path] if table is None else [path, table])
    _check_output(folder)
    if path.is_dir():
        results = read_results(path, longest)
        pictures = list(_pictures_of(results, color, table))
        page = _results_page(results, pictures)
    else:
        pictures, page = _embeddings(path, color, table)
    _write(folder, pictures, page)
    log.info("Wrote %s and %d pictures beside it", folder / PAGE, len(pictures))


def _check_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise UsageError(
            "Pictures need matplotlib, which is not installed: pip install 'virnucpro-pl[plot]'"
        ) from error


def _check_output(folder: Path) -> None:
    """Refuse to write among files that this command has not made."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"{folder} is a file, and pictures are a folder: give another --output")
    others = sorted(p.name for p in folder.iterdir() if not _OURS.fullmatch(p.name))
    if others:
        raise UsageError(
            f"{folder} holds more than pictures of this command: {listed(others)}. Give another "
            "--output"
        )


def _write(folder: Path, pictures: list[Picture], page: str) -> None:
    contents = {f"{picture.name}.png": picture.png for picture in pictures}
    contents[PAGE] = page.encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            with published(folder / name, durable=False) as temporary:
                temporary.write_bytes(content)
        for file in folder.iterdir():
            if file.name not in contents:  # of an earlier call, with more records
                file.unlink()
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error}") from error


def _pictures_of(results: Results, color: str | None, table: Path | None) -> Iterator[Picture]:
    from virnucpro_pl.plot import figures as draw

    make, records = draw.make_picture, results.records
    if len(results.orf_scores):
        yield make("scores", "Distribution of scores", partial(draw.draw_scores, results))
    if records is not None and len(records.lengths):
        bars = partial(draw.draw_length_shares, records)
        yield make("calls_by_length", "Calls by length", bars)
    for number, track in enumerate(results.tracks, 1):
        line = partial(draw.draw_track, track)
        yield make(f"contig_{number:02d}", f"Along {track.name}", line)
    for name in ("dnabert_s", "esm2"):
        file = results.path / f"{name}.h5"
        if file.is_file() and len(results.orf_scores) > 1:
            own = (SCORE, results.path / "prediction_results.txt")
            yield _map(file, f"map_{name}", *((color, table) if color else own))
    if seconds := results.run.get("seconds"):
        yield make("phases", "Where the time went", partial(draw.draw_phases, seconds))


def _map(path: Path, name: str, color: str | None, table: Path | None) -> Picture:
    from virnucpro_pl.plot import embedding_map as maps
    from virnucpro_pl.plot.figures import make_picture

    file = EmbeddingFile(path)
    try:
        sample = maps.read_sample(file)
        if table is None or color is None:
            shade = maps.color_by_length(file, sample)
        else:
            shade = maps.color_by_table(file, sample, table, color)
        model = str(file.file.attrs.get("model", path.name))
    finally:
        file.close()
    return make_picture(name, f"Map of {path.name}", partial(maps.draw_map, sample, shade, model))


def _embeddings(path: Path, color: str | None, table: Path | None) -> tuple[list[Picture], str]:
    picture = _map(path, "map", color, table)
    file = EmbeddingFile(path)
    facts = {"rows": len(file), "width": file.width}
    told = {key: value for key, value in file.file.attrs.items() if key != "config"}
    file.close()
    tables = {"Embedding file": {**facts, **{key: _plain(value) for key, value in told.items()}}}
    lead = f"{facts['rows']:,} embeddings of {facts['width']:,} numbers."
    page = make_page(f"Embeddings: {path.name}", lead, [picture], tables, [], [], __version__)
    return [picture], page


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _results_page(results: Results, pictures: list[Picture]) -> str:
    summary, run = results.summary, results.run
    warnings = summary.get("warnings", [])
    missing = [
        f"{name} is missing: what it would tell is left out."
        for name, content in (
            ("summary.json", summary),
            (f"{results.path.absolute().name}.run.json beside the folder", run),
        )
        if not content
    ]
    if results.records is None:
        missing.append("There is no contigs.tsv, as after classify.yaml: no calls of records.")
    lost = {f"ORFs: {key}": value for key, value in summary.get("orfs_skipped", {}).items()}
    tables = {
        "What became of the input": {
            **_flat("Records", summary, "records"),
            **_flat("Chunks", summary, "chunks"),
            **{
                key.replace("_", " "): summary[key]
                for key in ("orfs", "orfs_scored")
                if key in summary
            },
            **lost,
        },
        "The run": {
            **{f"{key} in all": value for key, value in run.get("totals", {}).items()},
            **{key: run[key] for key in _RUN_FACTS if run.get(key) is not None},
        },
        "Models and input": {
            key: summary[key] for key in _MODEL_FACTS if summary.get(key) is not None
        },
    }
    title = f"VirNucPro results: {results.path.absolute().name}"
    return make_page(title, _lead(results), pictures, tables, warnings, missing, __version__)


def _flat(label: str, summary: dict[str, Any], key: str) -> dict[str, Any]:
    """A count, and the parts that add up to it."""
    told = {label: summary[key]} if key in summary else {}
    for kind in ("status", "prediction"):
        for name, number in summary.get(f"{key}_by_{kind}", {}).items():
            told[f"{label} with {kind} {name}"] = number
    return told


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
