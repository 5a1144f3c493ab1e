"""`virnucpro-pl plot`: pictures of results, embeddings or a classifier, and one page with them all.

matplotlib and pandas are imported when something is drawn, so that no other command needs them.
"""

from __future__ import annotations

import logging
import os
import re
from importlib import import_module
from pathlib import Path
from typing import Any

from virnucpro_pl.errors import UsageError, listed
from virnucpro_pl.output.atomic_files import published
from virnucpro_pl.output.overwriting import refuse_inputs
from virnucpro_pl.plot.page import MADE_BY, Picture

log = logging.getLogger(__name__)

PAGE = "index.html"
_OURS = re.compile(
    r"index\.html|(scores|calls_by_length|phases|record_[\w.-]+|map(_\w+)?|reliability|thresholds)"
    r"\.(png|svg)",
    re.ASCII,
)
"""Files that a folder of this command may hold."""


def plot(
    path: Path,
    output: Path | None = None,
    top: int | None = None,
    longest: int | None = None,
    records: list[str] | None = None,
    color: str | None = None,
    table: Path | None = None,
) -> None:
    """Draw results, an embedding file or a classifier as PNG and SVG files and one HTML page.

    Results: the records of the highest virus_score, how scores are distributed, the share of calls
    by length, the score along some records chunk by chunk, and the figures of the run. Embeddings
    (also those in the folder): a map by their first two principal components, of 20,000 random rows
    at most. A classifier: what its probabilities are worth, and its calls by the threshold.

    Args:
        path: Folder that virnucpro.yaml, classify.yaml or fit has written, or an embedding file.
        output: Folder to write; `<path>.pictures` by default. Pictures that are there are replaced.
        top: How many of the records with the highest virus_score to draw along their length; 6 by
            default.
        longest: How many of the longest records to draw so, 6 by default; those drawn already are
            not repeated.
        records: Ids of records to draw so, before the others: `--records ID ID ...`, behind the
            path.
        color: What colours a map: `length`, or a column of the table. By default score2 where there
            are results, else the length.
        table: Tab-separated table with a header, whose first column is the id.
    """
    for option, number in (("--top", top), ("--longest", longest)):
        if number is not None and number < 0:
            raise UsageError(f"{option} must be at least 0, not {number}")
    if not path.exists():
        raise UsageError(f"{path}: no such folder of results, classifier or embedding file")
    is_classifier = _is_classifier(path)
    along = {"--top": top, "--longest": longest, "--records": records}
    if is_classifier or not path.is_dir():
        _refuse(along, "a folder of results", path)
    if is_classifier:
        _refuse({"--color": color, "--table": table}, "results or an embedding file", path)
    _check_colors(color, table)
    _check_extra()
    folder = Path(f"{os.path.normpath(path)}.pictures") if output is None else output
    pictures_there = folder.iterdir() if folder.is_dir() else ()
    refuse_inputs([folder, *pictures_there], [path] if table is None else [path, table])
    _check_output(folder)
    from virnucpro_pl.plot.classifier_page import draw_classifier
    from virnucpro_pl.plot.contigs import Choice
    from virnucpro_pl.plot.pictures import draw_embeddings, draw_results

    if is_classifier:
        pictures, page = draw_classifier(path)
    elif path.is_dir():
        numbers = {"top": top, "longest": longest}
        given = {name: number for name, number in numbers.items() if number is not None}
        choice = Choice(tuple(dict.fromkeys(records or ())), **given)
        pictures, page = draw_results(path, choice, color, table)
    else:
        pictures, page = draw_embeddings(path, color, table)
    _write(folder, pictures, page)
    log.info("Wrote %s and %d pictures beside it", folder / PAGE, len(pictures))


def _is_classifier(path: Path) -> bool:
    """Tell a folder that `fit` has written, be it damaged, from one of results."""
    if (path / "prediction_results.txt").exists():
        return False
    return any((path / name).exists() for name in ("best.ckpt", "metrics.json"))


def _refuse(options: dict[str, Any], what: str, path: Path) -> None:
    """Refuse options that draw nothing of this path."""
    for option, value in options.items():
        if value is not None:
            raise UsageError(f"{option} is for {what}, which {path} is not: leave it out")


def _check_colors(color: str | None, table: Path | None) -> None:
    if color not in (None, "length") and table is None:
        raise UsageError(f"--color {color} names a column: give its table with --table FILE.tsv")
    if table is not None and color in (None, "length"):
        raise UsageError("--table needs the column that colours the map: give --color COLUMN")


def _check_extra() -> None:
    for library in ("matplotlib", "pandas"):
        try:
            import_module(library)
        except ModuleNotFoundError as error:
            raise UsageError(
                f"Pictures need {library}, which is not installed: pip install 'virnucpro-pl[plot]'"
            ) from error


def _check_output(folder: Path) -> None:
    """Refuse to write among files that this command has not made, or over such a page."""
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
    page = folder / PAGE
    if page.exists() and MADE_BY not in page.read_text(encoding="utf-8", errors="replace"):
        raise UsageError(f"{page} is no page of this command: give another --output")


def _write(folder: Path, pictures: list[Picture], page: str) -> None:
    contents = {f"{picture.name}.png": picture.png for picture in pictures}
    contents |= {f"{picture.name}.svg": picture.svg for picture in pictures}
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
