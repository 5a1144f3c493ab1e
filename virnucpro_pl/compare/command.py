"""`virnucpro-pl compare`: how far two embedding files, or two prediction tables, are apart."""

from __future__ import annotations

import logging
import math
import tempfile
from pathlib import Path

import h5py

from virnucpro_pl.compare.joined import Vectors
from virnucpro_pl.compare.original_file import OriginalFile
from virnucpro_pl.compare.printing import print_difference
from virnucpro_pl.compare.score_table import (
    ScoreTable,
    TableDifference,
    compare_tables,
    is_score_table,
)
from virnucpro_pl.compare.vectors import (
    Spread,
    VectorDifference,
    compare_vectors,
)
from virnucpro_pl.embeddings.embedding_file import EmbeddingFile
from virnucpro_pl.errors import GateError, InputError, UsageError
from virnucpro_pl.output.figures_file import check_figures_file, plain, write_figures

log = logging.getLogger(__name__)

Source = Vectors | ScoreTable
_KEYS = ("a", "b", "kinds", "gates", "gates_unmet")
"""What every file of figures holds, so that no other file is taken for an earlier one."""


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

    Args:
        a: The file that the other is measured by: an embedding file of this program, embeddings.h5
            of virnucpro-broad, a file *_ESM.pt, *_DNABERT_S.pt or *_merged.pt of VirNucPro or a
            folder of them, read as one; or prediction_results.txt or
            prediction_results_highestscore.csv.
        b: The other file, of the same kind.
        min_cosine: Gate: least plain cosine of any record, else exit code 1. Alone it proves
            nothing. With a gate no row may be missing from either file, nor be NaN unless the
            file lists it in /failed. Options may be written with hyphens.
        min_centred_cosine: Gate: least cosine of any record after the mean vector of A was
            subtracted; 0.999 is right for FP16 against FP32.
        seed: Of the sample of at most 5,000 records among which nearest neighbours are sought.
        output: JSON file for all figures; an earlier one is replaced.

    Raises:
        UsageError: If the files cannot be compared, or the options cannot be followed.
        GateError: If a gate is not met.
        OutputError: If the JSON file cannot be written.
    """
    asked = {"cosine": min_cosine, "centred_cosine": min_centred_cosine}
    gates = {name: least for name, least in asked.items() if least is not None}
    _check_options((a, b), gates, output)
    sources = _open(a), _open(b)
    kinds = [_kind(source) for source in sources]
    result = _difference(*sources, kinds, gates, seed)
    unmet = _unmet(result, gates)
    print_difference(result, (a, b), kinds)
    if output is not None:
        content = {"a": str(a), "b": str(b), "kinds": kinds, **plain(result)}
        gated = {f"min_{name}": least for name, least in gates.items()}
        write_figures(output, content | {"gates": gated, "gates_unmet": unmet})
        log.info("Wrote %s", output)
    if unmet:
        raise GateError(f"{b} is not accepted against {a}: {'; '.join(unmet)}")
    if gates:
        log.info("Every gate is met")


def _check_options(inputs: tuple[Path, Path], gates: dict[str, float], output: Path | None) -> None:
    for name, least in gates.items():
        if not -1 <= least <= 1:
            raise UsageError(f"--min_{name} {least} is no cosine: it must lie between -1 and 1")
    if output is None:
        return
    within = [file for path in inputs if path.is_dir() for file in path.glob("*.pt")]
    check_figures_file(output, [*inputs, *within], _KEYS)


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
        if "format" not in file.attributes:
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


def _difference(
    a: Source, b: Source, kinds: list[str | None], gates: dict[str, float], seed: int
) -> VectorDifference | TableDifference:
    """Compare two files, which must be of one kind."""
    with tempfile.TemporaryDirectory() as scratch:
        if None in kinds or kinds[0] == kinds[1]:
            if isinstance(a, ScoreTable) and isinstance(b, ScoreTable):
                if gates:
                    raise UsageError(
                        f"{a.path} and {b.path} are tables: --min_... gates are for embeddings"
                    )
                return compare_tables(a, b, Path(scratch))
            if not isinstance(a, ScoreTable) and not isinstance(b, ScoreTable):
                return compare_vectors(a, b, Path(scratch), seed)
    what = [kind or "embeddings" for kind in kinds]
    raise UsageError(f"{a.path} holds {what[0]}, {b.path} {what[1]}: they are not of one kind")


def _unmet(result: VectorDifference | TableDifference, gates: dict[str, float]) -> list[str]:
    """Reasons why the gates, if any, are not met."""
    if isinstance(result, TableDifference) or not gates:
        return []
    rows, reasons = result.rows, []
    if not rows.compared:
        reasons.append("no record could be compared")
    for name, only, strange in zip("AB", rows.only, rows.not_finite, strict=True):
        if only.number:
            reasons.append(f"{only.number} row(s) are only in {name}")
        if strange.number:
            reasons.append(f"{strange.number} row(s) of {name} are NaN or Inf, unlisted")
    for name, least in gates.items() if rows.compared else ():
        spread: Spread = getattr(result.classes["all"], name)
        if not spread.min >= least:  # NaN is not met
            lowest = "undefined" if math.isnan(spread.min) else f"{spread.min:.7f}"
            reasons.append(f"the lowest {name.replace('_', ' ')} is {lowest}, less than {least}")
    if reasons and result.worst:
        reasons[-1] += f" (furthest apart: {', '.join(worst.id for worst in result.worst[:3])})"
    return reasons
