"""`virnucpro-pl plot`: pictures of results or of an embedding file, and one page with all of them.

matplotlib and pandas are imported when something is drawn, so that no other command needs them.
"""

from __future__ import annotations

import logging
import os
import re
from importlib import import_module
from pathlib import Path

from virnucpro_pl.errors import UsageError, listed
from virnucpro_pl.output.atomic_files import published
from virnucpro_pl.output.overwriting import refuse_inputs
from virnucpro_pl.plot.page import MADE_BY, Picture

log = logging.getLogger(__name__)

PAGE = "index.html"
_OURS = re.compile(
    r"index\.html|(scores|calls_by_length|phases|record_[\w.-]+|map(_\w+)?)\.(png|svg)", re.ASCII
)
"""Files that a folder of this command may hold."""


def plot(
    path: Path,
    output: Path | None = None,
    top: int = 6,
    longest: int = 6,
    records: list[str] | None = None,
    color: str | None = None,
    table: Path | None = None,
) -> None:
    """Draw a folder of results, or an embedding file, as PNG and SVG files and one HTML page.

    Results: the records of the highest virus_score, how scores are distributed, the share of calls
    by length, the score along some records chunk by chunk, and the figures of the run. Embeddings
    (also those in the folder): a map by their first two principal components, of 20,000 random rows
    at most.

    Args:
        path: Folder that virnucpro.yaml or classify.yaml has written, or an embedding file.
        output: Folder to write; `<path>.pictures` by default. Pictures that are there are replaced.
        top: How many of the records with the highest virus_score to draw along their length.
        longest: How many of the longest records to draw so; those drawn already are not repeated.
        records: Ids of records to draw so, before the others: `--records ID ID ...`, behind the
            path.
        color: What colours a map: `length`, or a column of the table. By default score2 where there
            are results, else the length.
        table: Tab-separated table with a header, whose first column is the id.
    """
    for option, number in (("--top", top), ("--longest", longest)):
        if number < 0:
            raise UsageError(f"{option} must be at least 0, not {number}")
    if color not in (None, "length") and table is None:
        raise UsageError(f"--color {color} names a column: give its table with --table FILE.tsv")
    if table is not None and color in (None, "length"):
        raise UsageError("--table needs the column that colours the map: give --color COLUMN")
    if not path.exists():
        raise UsageError(f"{path}: no such folder of results or embedding file")
    if records and not path.is_dir():
        raise UsageError(f"--records are drawn of a folder of results, which {path} is not")
    _check_extra()
    folder = Path(f"{os.path.normpath(path)}.pictures") if output is None else output
    pictures_there = folder.iterdir() if folder.is_dir() else ()
    refuse_inputs([folder, *pictures_there], [path] if table is None else [path, table])
    _check_output(folder)
    from virnucpro_pl.plot.contigs import Choice
    from virnucpro_pl.plot.pictures import draw_embeddings, draw_results

    if path.is_dir():
        choice = Choice(tuple(dict.fromkeys(records or ())), top, longest)
        pictures, page = draw_results(path, choice, color, table)
    else:
        pictures, page = draw_embeddings(path, color, table)
    _write(folder, pictures, page)
    log.info("Wrote %s and %d pictures beside it", folder / PAGE, len(pictures))


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
