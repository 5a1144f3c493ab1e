"""`virnucpro-pl compare`: how far two embedding files, or two prediction tables, are apart."""

from __future__ import annotations

import logging
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import h5py
from rich.console import Console
from rich.table import Table

from virnucpro_pl.comparison.original_file import OriginalFile
from virnucpro_pl.comparison.rows import Rows
from virnucpro_pl.comparison.score_table import (
    ScoreTable,
    TableDifference,
    compare_tables,
    is_score_table,
)
from virnucpro_pl.comparison.vectors import (
    CLASSES,
    FENCE,
    Figures,
    Spread,
    VectorDifference,
    compare_vectors,
)
from virnucpro_pl.errors import GateError, InputError, UsageError, listed
from virnucpro_pl.output.files import write_json
from virnucpro_pl.sequences.embedding_file import EmbeddingFile

__all__ = ["compare"]

log = logging.getLogger(__name__)

PLAIN_PROVES_NOTHING = (
    "The plain cosine alone proves nothing: vectors of one model share a direction, so that "
    "different sequences come near 1, too. Judge by the centred one: the mean vector of A was "
    "subtracted from both."
)
_RANGES = {"short": "short, < 50", "medium": "medium, 50-200", "long": "long, > 200"}

Source = EmbeddingFile | OriginalFile | ScoreTable


def compare(
    a: Path,
    b: Path,
    *,
    min_cosine: float | None = None,
    min_centred_cosine: float | None = None,
    seed: int = 0,
    output: Path | None = None,
) -> None:
    """Tell how far two embedding files, or two prediction tables, are apart, joined by id.

    An embedding file is one of this program, embeddings.h5 of virnucpro-broad, a file *_ESM.pt,
    *_DNABERT_S.pt or *_merged.pt of VirNucPro, or a folder of the latter, read as one. A table is
    prediction_results.txt or prediction_results_highestscore.csv. Options may be written with
    hyphens. Exit code 1: a gate is not met; 2: the files cannot be compared.

    Args:
        a: The file that the other is measured by.
        b: The other file.
        min_cosine: Gate: least plain cosine of any record; proves nothing without the other gate.
        min_centred_cosine: Gate: least centred cosine of any record, 0.999 for FP16 against FP32.
            With a gate no row may be missing from either file, nor be NaN without being listed in
            /failed.
        seed: Of the sample of 5,000 records among which nearest neighbours are sought.
        output: JSON file for all figures; replaced if it exists.

    Raises:
        UsageError: If the files cannot be compared, or the options cannot be followed.
        GateError: If a gate is not met.
    """
    gates = {"cosine": min_cosine, "centred_cosine": min_centred_cosine}
    _check_options((a, b), gates, output)
    sources = _open(a), _open(b)
    kinds = [_kind(source) for source in sources]
    _check_kinds(sources, kinds, gates)
    with tempfile.TemporaryDirectory() as scratch:
        result: VectorDifference | TableDifference
        if isinstance(sources[0], ScoreTable) and isinstance(sources[1], ScoreTable):
            result = compare_tables(sources[0], sources[1], Path(scratch))
        else:
            result = compare_vectors(*sources, Path(scratch), seed)  # type: ignore[arg-type]
    unmet = _unmet(result, gates)
    _print(result, (a, b), kinds)
    if output is not None:
        content = {"a": str(a), "b": str(b), "kinds": kinds, **_plain(result)}
        gated = {f"min_{name}": least for name, least in gates.items() if least is not None}
        write_json(output, content | {"gates": gated, "gates_unmet": unmet})
        log.info("Wrote %s", output)
    if unmet:
        raise GateError(f"{b} is not accepted against {a}: {'; '.join(unmet)}")
    if any(least is not None for least in gates.values()):
        log.info("Every gate is met")


def _check_options(
    inputs: tuple[Path, Path], gates: dict[str, float | None], output: Path | None
) -> None:
    for name, least in gates.items():
        if least is not None and not -1 <= least <= 1:
            raise UsageError(f"--min_{name} {least} is no cosine: it must lie between -1 and 1")
    if output is None:
        return
    if not output.parent.is_dir():
        raise UsageError(f"--output {output}: there is no folder {output.parent}")
    if output.is_dir() or any(path.exists() and path.samefile(output) for path in inputs
                              if output.exists()):  # fmt: skip
        raise UsageError(f"--output {output} is a folder, or a file to compare: name another file")


def _open(path: Path) -> Source:
    """Open a file as what its content shows it to be.

    Raises:
        InputError: If it is missing or none of them.
    """
    if path.is_dir():
        return OriginalFile(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if h5py.is_hdf5(path) or path.suffix in (".h5", ".hdf5"):
        file = EmbeddingFile(path, foreign=True)
        if "format" not in file.file.attrs:
            log.warning("%s names no format and cannot tell whether it is complete", path)
        return file
    if path.suffix in (".pt", ".pth"):
        return OriginalFile(path)
    if is_score_table(path):
        return ScoreTable(path)
    raise InputError(
        f"{path} is neither an embedding file (HDF5, or .pt of VirNucPro) nor a table with the "
        "header of prediction_results.txt or prediction_results_highestscore.csv"
    )


def _kind(source: Source) -> str | None:
    """What a file holds; None if it does not tell."""
    if not isinstance(source, EmbeddingFile):
        return source.kind
    model = str(source.attributes.get("model", "")).lower()
    return "DNABERT-S" if "dnabert" in model else "ESM-2" if "esm" in model else None


def _check_kinds(
    sources: tuple[Source, Source], kinds: list[str | None], gates: dict[str, float | None]
) -> None:
    a, b = sources
    tables = [isinstance(source, ScoreTable) for source in sources]
    if tables[0] != tables[1] or (None not in kinds and kinds[0] != kinds[1]):
        what = [kind or "embeddings" for kind in kinds]
        raise UsageError(f"{a.path} holds {what[0]}, {b.path} {what[1]}: they are not of one kind")
    if tables[0] and any(least is not None for least in gates.values()):
        raise UsageError(f"{a.path} and {b.path} are tables: --min_... gates are for embeddings")


def _unmet(result: VectorDifference | TableDifference, gates: dict[str, float | None]) -> list[str]:
    """Reasons why the gates, if any, are not met."""
    if isinstance(result, TableDifference) or all(least is None for least in gates.values()):
        return []
    rows, reasons = result.rows, []
    if not rows.compared:
        reasons.append("no record could be compared")
    for name, only, strange in zip("AB", rows.only, rows.not_finite, strict=True):
        if only.number:
            reasons.append(f"{only.number} row(s) are only in {name}")
        if strange.number:
            reasons.append(f"{strange.number} row(s) of {name} are NaN or Inf, unlisted")
    for name, least in gates.items():
        if least is None or not rows.compared:
            continue
        spread: Spread = getattr(result.classes["all"], name)
        if not spread.min >= least:  # NaN is not met
            found = "undefined" if math.isnan(spread.min) else f"{spread.min:.7f}"
            reasons.append(f"the lowest {name.replace('_', ' ')} is {found}, less than {least}")
    if reasons and result.worst:
        reasons[-1] += f" (furthest apart: {listed([worst.id for worst in result.worst], 3)})"
    return reasons


def _print(
    result: VectorDifference | TableDifference,
    paths: tuple[Path, Path],
    kinds: list[str | None],
) -> None:
    console = Console(file=sys.stdout, width=120, highlight=False, markup=False)
    for name, path, kind, total in zip("AB", paths, kinds, result.rows.total, strict=True):
        console.print(f"{name}: {path} ({kind or 'embeddings'}, {total} rows)", soft_wrap=True)
    for line in _row_lines(result.rows):
        console.print(line, soft_wrap=True)
    if isinstance(result, TableDifference):
        for line in _table_lines(result):
            console.print(line, soft_wrap=True)
        return
    if result.other_lengths:
        log.warning(
            "%d records have another length in B: the files are not of the same sequences",
            result.other_lengths,
        )
    if result.classes:
        console.print(_figure_table(result.classes))
    for line in _neighbour_lines(result):
        console.print(line, soft_wrap=True)
    console.print(PLAIN_PROVES_NOTHING)


def _row_lines(rows: Rows) -> list[str]:
    lines = [f"Compared: {rows.compared} records"]
    for what, both in (
        ("Only in", rows.only),
        ("Failed, so listed in the file, not compared, in", rows.failed),
        ("NaN or Inf, though not listed as failed, not compared, in", rows.not_finite),
    ):
        for name, some in zip("AB", both, strict=True):
            if some.number:
                names = listed(some.first_ids, 5) if some.number <= 5 else (
                    f"{', '.join(some.first_ids[:5])} and {some.number - 5} more"
                )  # fmt: skip
                lines.append(f"{what} {name}: {some.number}: {names}")
    return lines


def _table_lines(result: TableDifference) -> list[str]:
    flips = result.flips
    lines = [
        f"Label flips: {flips.number} ({result.to_virus} viral only in B, "
        f"{result.from_virus} only in A)"
    ]
    if flips.number:
        more = flips.number - len(flips.first_ids)
        lines.append(f"  {', '.join(flips.first_ids)}{f' and {more} more' if more else ''}")
    if result.largest_change is not None:
        lines.append(
            f"Largest score change: {result.largest_change:.3g} ({result.largest_change_id}); "
            f"mean {result.mean_change:.3g}"
        )
    return lines


def _neighbour_lines(result: VectorDifference) -> list[str]:
    near, lines = result.neighbours, []
    if near.same is not None:
        lines.append(f"Same nearest neighbour: {near.same:.2%} of {near.sample} records")
        lines.append(
            f"Plain cosine of different records of A: {near.cosine_of_others:.4f} (median)"
        )
    if result.worst:
        worst = result.worst[0]
        length = "" if worst.length is None else f", length {worst.length}"
        lines.append(
            f"Furthest apart: {worst.id} (centred cosine {worst.centred_cosine:.7f}, "
            f"plain {worst.cosine:.7f}{length})"
        )
    return lines


def _figure_table(classes: dict[str, Figures]) -> Table:
    table = Table()
    table.add_column("")
    for name in CLASSES:
        if name in classes:
            table.add_column(_RANGES.get(name, name), justify="right")

    def row(label: str, *values: str) -> None:
        table.add_row(label, *values)

    of = [classes[name] for name in CLASSES if name in classes]
    row("records", *(f"{each.records:,}" for each in of))
    for label, spreads in (
        ("plain cosine", [each.cosine for each in of]),
        ("centred cosine", [each.centred_cosine for each in of]),
    ):
        row(f"{label}: min", *(f"{spread.min:.7f}" for spread in spreads))
        row("  1 % quantile", *(f"{spread.percentile_1:.7f}" for spread in spreads))
        row("  median", *(f"{spread.median:.7f}" for spread in spreads))
    row("largest difference", *(f"{each.largest_difference:.3g}" for each in of))
    row("norm of B over A: mean", *(f"{each.norm_ratio:.6f}" for each in of))
    row("  range", *("{:.5f}-{:.5f}".format(*each.norm_ratio_range) for each in of))
    row("mean, A | B", *("{:.5f} | {:.5f}".format(*each.mean) for each in of))
    row(
        "st. deviation, A | B", *("{:.5f} | {:.5f}".format(*each.standard_deviation) for each in of)
    )
    row(f"outliers (> {FENCE:g} sd), A | B", *("{:,} | {:,}".format(*each.outliers) for each in of))
    return table


def _plain(value: Any) -> Any:
    """Give named tuples as dictionaries, and numbers that JSON does not know as None."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
