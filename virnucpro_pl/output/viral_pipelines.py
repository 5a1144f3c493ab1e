"""`virnucpro-pl export results --to viral-pipelines`: calls as Broad's pipelines write them.

The files are those of the tasks `classify_virnucpro` and `classify_virnucpro_contigs` in
broadinstitute/viral-pipelines (`pipes/WDL/tasks/tasks_metagenomics.wdl`, branch ca-kb_python).
Whoever reads them takes each row for a scored one: what has no score is in none of the files.
"""

from __future__ import annotations

import gzip
import logging
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from virnucpro_pl.errors import InputError, OutputError, UsageError
from virnucpro_pl.output.atomic_files import published
from virnucpro_pl.output.chunk_table import NOT_SAMPLED
from virnucpro_pl.output.contig_rule import CALLS, TIERS, call_by_rule, rounded
from virnucpro_pl.output.figures_file import holds
from virnucpro_pl.output.overwriting import check_exports
from virnucpro_pl.output.sorted_lines import sort_lines
from virnucpro_pl.output.tables import PREDICTION_HEADER

log = logging.getLogger(__name__)

_HIGHEST_HEADER = "Modified_ID\tIs_Virus\tmax_score_0\tmax_score_1\n"
_CLASSIFIED_HEADER = (
    "ID\tcall\ttier\tweighted_delta\tn_chunks\tn_confident_viral\tn_confident_nonviral"
    "\tn_ambiguous\tviral_proportion\tnonviral_proportion\n"
)
_CALLS = dict(zip(CALLS, ("Viral", "Non-viral", "Ambiguous"), strict=False))
_ORFS, _CHUNKS, _PACKED, _CLASSIFIED = (
    *(".virnucpro.tsv", ".virnucpro_highestscore.csv"),
    *(".virnucpro.tgz", ".contigs_classified.tsv"),
)
_CHUNKS_AT_ONCE = 1 << 16
_DIGITS = re.compile("([0-9]+)")

_Chunk = tuple[str, str, str, str, str]
"""Record, number, score of others and of virus, and call of a chunk, as `chunks.tsv` has them."""


def export_results(results: Path, output: Path | None, overwrite: bool) -> None:
    """Write the calls of a folder of results as the pipelines' tasks do.

    Args:
        results: Folder that predict has written, of contigs.
        output: What the names of the files begin with; by default as the folder.
        overwrite: Whether to replace such files.

    Raises:
        UsageError: If the folder holds no results of contigs, or an output exists, is something
            else, or has no folder.
        InputError: If a table is damaged.
        OutputError: If the disk is full, for example.
    """
    orfs, chunks = results / "prediction_results.txt", results / "chunks.tsv"
    if not orfs.is_file() or not holds(results / "summary.json", ("orfs", "package_version")):
        raise UsageError(f"{results} is no folder of results, as predict writes it")
    if not chunks.is_file():
        raise UsageError(
            f"{results} has no chunks.tsv: classify.yaml writes none, nor did earlier versions. "
            "Run predict on the contigs again"
        )
    begin = Path(os.path.abspath(results)) if output is None else output
    if not begin.name:
        raise UsageError(f"--output {begin} has no name that the files could begin with")
    checks: dict[str, Callable[[Path], bool]] = {
        _ORFS: lambda path: _begins(path, PREDICTION_HEADER),
        _CHUNKS: lambda path: _begins(path, _HIGHEST_HEADER),
        _PACKED: _is_packed,
        _CLASSIFIED: lambda path: _begins(path, _CLASSIFIED_HEADER),
    }
    outputs = {name: begin.with_name(f"{begin.name}{name}") for name in checks}
    is_own = {outputs[name]: check for name, check in checks.items()}
    check_exports(is_own, [orfs, chunks], "viral-pipelines", overwrite)
    try:
        *counts, sampled = _write(orfs, chunks, outputs)
    except OSError as error:
        raise OutputError(f"{begin}.* cannot be written: {error}") from error
    log.info(
        "Wrote %s: %d ORFs, %d chunks and %d records that have a score",
        ", ".join(map(str, outputs.values())),
        *counts,
    )
    if sampled:
        log.warning(
            "%d records were called by a sample of their chunks (--data.max_chunks), which none of "
            "these files says: they hold the chunks of the samples, and count no others",
            sampled,
        )


def _write(orfs: Path, chunks: Path, outputs: dict[str, Path]) -> tuple[int, int, int, int]:
    """Write all files, and give the numbers of ORFs, chunks, records, and sampled records."""
    folder, sampled = outputs[_CLASSIFIED].parent, set[str]()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(TemporaryDirectory(prefix=".tmp-", dir=folder)))
        files = {
            name: stack.enter_context(published(outputs[name]))
            for name in (_PACKED, _CHUNKS, _ORFS, _CLASSIFIED)
        }
        n_orfs = _write_lines(files[_ORFS], PREDICTION_HEADER, _scored_orfs(orfs))
        lines = sort_lines(_highest_lines(_scored_chunks(chunks, sampled)), scratch)
        n_chunks = _write_lines(files[_CHUNKS], _HIGHEST_HEADER, lines)
        records = _classified_lines(_scored_chunks(chunks, sampled))
        classified = sort_lines(records, scratch, natural_key)
        n_records = _write_lines(files[_CLASSIFIED], _CLASSIFIED_HEADER, classified)
        _pack(files[_PACKED], {outputs[name].name: files[name] for name in (_ORFS, _CHUNKS)})
        return n_orfs, n_chunks, n_records, len(sampled)


def _write_lines(path: Path, header: str, lines: Iterable[str]) -> int:
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(header)
        for count, line in enumerate(lines, 1):  # noqa: B007 - used behind the loop
            file.write(line)
    return count


def _scored_orfs(path: Path) -> Iterator[str]:
    """Yield the rows of `prediction_results.txt` that have a score."""
    for row in _rows(path, PREDICTION_HEADER.split()):
        if row[1] != "NA":
            yield "\t".join(row) + "\n"


def _scored_chunks(path: Path, sampled: set[str]) -> Iterator[_Chunk]:
    """Yield the rows of `chunks.tsv` that have a score, in the order of records.

    Args:
        path: The table.
        sampled: Is given the records of which some chunks were not computed.
    """
    names = ["seq_name", "chunk", "others_score", "virus_score", "prediction"]
    for name, number, others, virus, call in _rows(path, names):
        if call == NOT_SAMPLED:
            sampled.add(name)
        if call in ("NA", NOT_SAMPLED):
            continue
        try:
            _ = float(others), float(virus)
        except ValueError as error:
            raise InputError(f"{path}: a score of chunk {number} of {name}: {error}") from error
        yield name, number, others, virus, call


def _rows(path: Path, names: list[str]) -> Iterator[list[str]]:
    """Yield these columns of each row of a table.

    Raises:
        InputError: If the file is not such a table, or is damaged.
    """
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            header = file.readline().rstrip("\n").split("\t")
            if lacking := [name for name in names if name not in header]:
                raise InputError(f"{path} has no column {', '.join(lacking)}")
            places = [header.index(name) for name in names]
            for number, line in enumerate(file, 2):
                cells = line.rstrip("\n").split("\t")
                if len(cells) != len(header) or not line.endswith("\n"):
                    raise InputError(f"{path}, line {number} is cut off or damaged: {line!r}")
                yield [cells[place] for place in places]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}") from error


def _highest_lines(chunks: Iterable[_Chunk]) -> Iterator[str]:
    for name, number, others, virus, call in chunks:
        yield f"{name}_chunk_{number}\t{call == 'virus'}\t{others}\t{virus}\n"


def _classified_lines(chunks: Iterable[_Chunk]) -> Iterator[str]:
    """Call the records by the rule, some whole ones at a time."""
    names: list[str] = []
    owner: list[int] = []
    scores: list[tuple[str, str]] = []
    for name, rows in groupby(chunks, itemgetter(0)):
        scores += [(others, virus) for _, _, others, virus, _ in rows]
        owner += [len(names)] * (len(scores) - len(owner))
        names.append(name)
        if len(scores) >= _CHUNKS_AT_ONCE:
            yield from _lines_of_records(names, owner, scores)
            names, owner, scores = [], [], []
    yield from _lines_of_records(names, owner, scores)


def _lines_of_records(
    names: list[str], owner: list[int], scores: list[tuple[str, str]]
) -> Iterator[str]:
    record = np.array(owner, np.int64)
    others, virus = np.array(scores, np.float64).reshape(-1, 2).T
    calls = call_by_rule(record, others, virus, len(names))
    counts = (
        np.bincount(record, minlength=len(names)),
        calls.n_confident_viral,
        calls.n_confident_others,
        calls.n_ambiguous,
    )
    numbers = calls.weighted_delta, calls.viral_proportion, calls.others_proportion
    for name, call, tier, delta, viral, others_text, *chunks in zip(
        *(names, calls.call.tolist(), calls.tier.tolist(), *map(rounded, numbers)),
        *(column.tolist() for column in counts),
        strict=True,
    ):
        word = TIERS[tier] if TIERS[tier] == "review" else f"{TIERS[tier]}_confidence"
        cells = name, _CALLS[CALLS[call]], word, delta, *chunks, viral, others_text
        yield "\t".join(map(str, cells)) + "\n"


def natural_key(line: str) -> list[str | tuple[int, str]]:
    """Give what the first cell of a line is sorted by: its digits are numbers, case is one.

    Texts and numbers take turns, so that only alike ones are compared.
    """
    parts = _DIGITS.split(line.partition("\t")[0].lower())
    numbers = [digits.lstrip("0") for digits in parts[1::2]]
    key: list[str | tuple[int, str]] = [*parts]
    key[1::2] = [(len(digits), digits) for digits in numbers]
    return key


def _pack(path: Path, files: dict[str, Path]) -> None:
    """Pack files under these names, so that the same files give the same bytes."""
    with (
        path.open("wb") as raw,
        gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for name, file in files.items():
            entry = tarfile.TarInfo(name)  # of no user, and of 1970
            entry.size = file.stat().st_size
            with file.open("rb") as content:
                tar.addfile(entry, content)


def _begins(path: Path, header: str) -> bool:
    with path.open("rb") as file:
        return file.read(len(header)) == header.encode()


def _is_packed(path: Path) -> bool:
    """Tell whether an archive holds the two tables, and nothing else."""
    try:
        with tarfile.open(path, "r:gz") as tar:
            names = [entry.name for entry in (tar.next(), tar.next(), tar.next()) if entry]
    except (tarfile.TarError, EOFError, zlib.error):
        return False
    return len(names) == 2 and names[0].endswith(_ORFS) and names[1].endswith(_CHUNKS)
