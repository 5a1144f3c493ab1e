"""The folder that `evaluate` writes: its tables, and all figures as JSON."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from virnucpro_pl.errors import OutputError, UsageError, listed
from virnucpro_pl.evaluate.evaluation import Evaluation
from virnucpro_pl.evaluate.figures import Part
from virnucpro_pl.measures import (
    Confusion,
    as_cell,
    write_calibration,
    write_thresholds,
)
from virnucpro_pl.output.atomic_files import published, write_json
from virnucpro_pl.output.figures_file import holds, plain
from virnucpro_pl.output.overwriting import is_or_holds, refuse_inputs
from virnucpro_pl.version import __version__

FIGURES = "evaluation.json"
_KEYS = ("results", "truth", "measured", "package_version")
"""What every file of figures holds, so that no other file is taken for an earlier one."""
_TABLES = ("thresholds", "by_length", "tiers", "calibration", "fdr", "missing")
_OURS = {FIGURES, *(f"{name}.tsv" for name in _TABLES)}
_IDS = 1 << 16

Write = Callable[[Path], None]


def check_folder(folder: Path, results: Path, inputs: list[Path]) -> None:
    """Refuse a folder that cannot be written, or that holds anything but an earlier evaluation.

    Args:
        folder: Value of `--output`.
        results: Folder of results, or a table.
        inputs: Files that are read.

    Raises:
        UsageError: If so.
    """
    refuse_inputs([folder, *(folder / name for name in _OURS)], [results, *inputs])
    if results.is_dir() and is_or_holds(results, folder):
        raise UsageError(
            f"--output {folder} lies in the results, which hold nothing but calls: name a folder "
            "beside them"
        )
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output {folder} is a file: name a folder")
    base = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not base.is_dir() or not os.access(base, os.W_OK):
        raise UsageError(f"--output {folder} cannot be written: {base} does not allow it")
    names = sorted(file.name for file in folder.iterdir()) if folder.exists() else []
    if others := [name for name in names if name not in _OURS]:
        raise UsageError(
            f"--output {folder} holds more than an evaluation: {listed(others)}. Name another "
            "folder"
        )
    if names and not holds(folder / FIGURES, _KEYS):
        raise UsageError(
            f"--output {folder} holds no {FIGURES} of this command: name another folder"
        )


def write_folder(folder: Path, result: Evaluation) -> None:
    """Write all figures, in place of an earlier evaluation; no file is ever half there.

    Raises:
        OutputError: If the disk is full, for example.
    """
    files = _files(result)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:  # all are whole before the first one is in its place
            for name, write in files.items():
                write(stack.enter_context(published(folder / name)))
        for name in _OURS - files.keys():  # of an earlier evaluation, which knew more
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error}") from error


def _files(result: Evaluation) -> dict[str, Write]:
    """What writes each file."""
    figures = result.figures
    by_length = ({"length": name, **part.summary()} for name, part in _parts(result).items())
    files: dict[str, Write] = {
        FIGURES: partial(write_json, content=plain(_content(result)), durable=False),
        "thresholds.tsv": partial(write_thresholds, measured=_confusions(result)),
        "by_length.tsv": partial(_write, lines=_table(by_length)),
        "missing.tsv": partial(_write, lines=_missing(result)),
    }
    if figures.tiers:
        tiers = (row._asdict() for row in figures.tiers)
        files["tiers.tsv"] = partial(_write, lines=_table(tiers))
    if figures.discoveries:
        rates = (row._asdict() for row in figures.discoveries)
        files["fdr.tsv"] = partial(_write, lines=_table(rates))
    if figures.calibration is not None:
        calibration = {"records": figures.calibration}
        files["calibration.tsv"] = partial(write_calibration, measured=calibration)
    return files


def _parts(result: Evaluation) -> dict[str, Part]:
    return {"all": result.figures.whole, **result.figures.by_length}


def _confusions(result: Evaluation) -> dict[str, Confusion]:
    """Name those of the scored and those of all records, of each length."""
    named = {}
    for length, part in _parts(result).items():
        behind = "" if length == "all" else f" {length}"
        named[f"scored{behind}"] = part.at_thresholds
        named[f"all{behind}"] = part.of_all_at_thresholds
    return named


def _content(result: Evaluation) -> dict[str, Any]:
    """Give all that the tables say but for the names of records that miss."""
    figures, bins = result.figures, result.figures.calibration
    return {
        "results": str(result.results),
        "truth": str(result.truth),
        "package_version": __version__,
        "records": result.n_results,
        "labels": result.n_labels,
        "measured": int(figures.whole.table.sum()),
        "without_label": len(result.without_label.rows),
        "without_result": len(result.without_result.rows),
        "by_length": {name: part.summary() for name, part in _parts(result).items()},
        "thresholds": {
            name: {column: values.tolist() for column, values in confusion.columns().items()}
            for name, confusion in _confusions(result).items()
        },
        "tiers": figures.tiers,
        "calibration": bins
        and {
            "records": int(bins.n.sum()),
            "expected_calibration_error": bins.expected_calibration_error,
            "brier_score": bins.brier_score,
            "bins": {column: values.tolist() for column, values in bins.columns().items()},
        },
        "fdr": figures.discoveries,
    }


def _missing(result: Evaluation) -> Iterator[str]:
    yield "seq_name\tmissing_from\n"
    sides = {"truth": result.without_label, "results": result.without_result}
    for side, (ids, rows) in sides.items():
        for start in range(0, len(rows), _IDS):
            yield from (f"{name}\t{side}\n" for name in ids(rows[start : start + _IDS]))


def _table(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of rows with the same columns, behind a header."""
    for place, row in enumerate(rows):
        if not place:
            yield "\t".join(row) + "\n"
        yield "\t".join(map(as_cell, row.values())) + "\n"


def _write(path: Path, lines: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(lines)
