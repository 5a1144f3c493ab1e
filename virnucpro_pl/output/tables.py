"""The result tables: the two files of VirNucPro (Li et al. 2025) and one row per input record.

- `prediction_results.txt`: label and both scores of every ORF.
- `prediction_results_highestscore.csv`: one call per chunk (tab-separated for all its name).
- `contigs.tsv`: one row for every input record, those without an ORF included.

Scores are (M, 2) float32, P(others) and P(virus) of each ORF. A row with a number that is not
finite is an ORF that could not be scored: it stays in the tables, as `NA`, and counts for nothing.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

PREDICTION_HEADER = "Sequence_ID\tPrediction\tscore1\tscore2\n"
HIGHEST_SCORE_HEADER = "Modified_ID\tIs_Virus\n"
CONTIGS_HEADER = (
    "seq_name\tlength\tn_chunks\tn_orfs\tn_viral_chunks\tprediction\tvirus_score\tstatus\n"
)
_CODON_BASES = 3
_ROWS_PER_WRITE = 1 << 14


class Contigs(NamedTuple):
    """What the chunks of each input record say about it."""

    lengths: NDArray[np.int64]
    """(R,) bases."""
    n_chunks: NDArray[np.int64]
    """(R,) chunks, those without an ORF included."""
    n_orfs: NDArray[np.int64]
    """(R,) ORFs, those that could not be scored included."""
    n_viral_chunks: NDArray[np.int64]
    """(R,) chunks that `prediction_results_highestscore.csv` calls True."""
    virus_score: NDArray[np.float32]
    """(R,) mean over the scored chunks of the best P(virus) in the chunk; NaN without one."""
    is_virus: NDArray[np.bool_]
    """(R,) virus_score is at or above the threshold; False without a score."""
    status: NDArray[np.str_]
    """(R,) `ok`, or the reason why there is no score: `too_short`, `no_orf` or `failed`."""


@contextmanager
def replace_when_written(path: str | os.PathLike[str]) -> Iterator[TextIO]:
    """Open a text file that gets its name only when it is whole.

    Args:
        path: The file to make or replace. What is written lies in `<path>.tmp` until the end of the
            `with` block, and is removed if that ends by an exception.

    Yields:
        The open file, UTF-8 with Unix line ends.
    """
    temporary = Path(f"{os.fspath(path)}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            yield file
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def format_predictions(ids: Sequence[str], scores: NDArray[np.float32]) -> str:
    """Format rows of `prediction_results.txt`, each with its line end.

    The label is the first maximum, so that a tie is `others`. Scores are written as numpy writes a
    float32: the shortest text that reads back as the same number.

    Args:
        ids: M ORF ids.
        scores: (M, 2) float32.

    Returns:
        M lines; an ORF that could not be scored has the label `NA`.

    Raises:
        ValueError: If there is not one pair of scores per id.
    """
    scores = _check_scores(scores, len(ids))
    labels = np.where(scores[:, 1] > scores[:, 0], "virus", "others")
    labels[~_is_scored(scores)] = "NA"
    rows = zip(ids, labels, scores[:, 0], scores[:, 1], strict=True)
    return "".join(f"{row}\t{label}\t{others!s}\t{virus!s}\n" for row, label, others, virus in rows)


def write_prediction_results(
    path: str | os.PathLike[str], ids: Sequence[str], scores: NDArray[np.float32]
) -> None:
    """Write `prediction_results.txt`: one row per ORF, in the order given.

    Args:
        path: The file to write.
        ids: M ORF ids.
        scores: (M, 2) float32; a memory map is read a block at a time.

    Raises:
        ValueError: If there is not one pair of scores per id.
    """
    scores = _check_scores(scores, len(ids))
    with replace_when_written(path) as file:
        file.write(PREDICTION_HEADER)
        for lo in range(0, len(ids), _ROWS_PER_WRITE):
            rows = slice(lo, lo + _ROWS_PER_WRITE)
            file.write(format_predictions(ids[rows], scores[rows]))


def write_highest_scores(
    path: str | os.PathLike[str], ids: Sequence[str], scores: NDArray[np.float32]
) -> None:
    """Write `prediction_results_highestscore.csv`: is the chunk viral, over all its frames?

    Modified_ID is the ORF id without its last two characters, the frame. Is_Virus is max(score2) >=
    max(score1), so that a tie is True here, other than in the labels of the ORFs. Rows are sorted
    as text, and a chunk without an ORF has none, all as in VirNucPro; a chunk of which no ORF could
    be scored is `NA`.

    Args:
        path: The file to write.
        ids: M ORF ids, in any order.
        scores: (M, 2) float32.

    Raises:
        ValueError: If there is not one pair of scores per id.
    """
    scores = _check_scores(scores, len(ids))
    places: dict[str, int] = {}
    group = np.array([places.setdefault(row[:-2], len(places)) for row in ids], dtype=np.int64)
    best = _best_scores(scores, group, len(places))
    calls = np.where(best[:, 1] >= best[:, 0], "True", "False")
    calls[np.isnan(best[:, 1])] = "NA"
    with replace_when_written(path) as file:
        file.write(HIGHEST_SCORE_HEADER)
        file.writelines(f"{chunk}\t{calls[places[chunk]]}\n" for chunk in sorted(places))


def summarise_contigs(
    lengths: NDArray[np.int64],
    n_chunks: NDArray[np.int64],
    record: NDArray[np.int64],
    chunk: NDArray[np.int64],
    scores: NDArray[np.float32],
    threshold: float = 0.5,
) -> Contigs:
    """Go from ORFs to records.

    The virus_score of a record is the mean over its chunks of the chunk's best score2, the record
    is called virus when that is at or above the threshold. Chunks without a scored ORF do not
    enter. The status is `too_short` for less than one codon, else `no_orf` without an ORF, else
    `failed` if none of the ORFs could be scored, else `ok`.

    Args:
        lengths: (R,) bases of each record.
        n_chunks: (R,) chunks of each record.
        record: (M,) index of each ORF's record, in any order.
        chunk: (M,) number of each ORF's chunk in its record, from 0.
        scores: (M, 2) float32.
        threshold: Least virus_score of a record called virus, compared in float32, the precision
            in which the table states it.

    Returns:
        One entry for every record, in their order.

    Raises:
        ValueError: If scores and ORFs differ in number, or an ORF names a chunk that is not there.
    """
    scores = _check_scores(scores, len(record))
    n_records, n_orfs = len(lengths), np.bincount(record, minlength=len(lengths))
    if len(n_orfs) > n_records or np.any((chunk < 0) | (chunk >= n_chunks[record])):
        raise ValueError(f"an ORF lies outside the chunks of the {n_records} records")
    best = _best_scores(scores, (np.cumsum(n_chunks) - n_chunks)[record] + chunk, n_chunks.sum())
    is_scored = ~np.isnan(best[:, 1])
    best, owner = best[is_scored], np.repeat(np.arange(n_records), n_chunks)[is_scored]
    n_scored = np.bincount(owner, minlength=n_records)
    total = np.bincount(owner, weights=best[:, 1], minlength=n_records)  # float64
    mean = np.divide(total, n_scored, out=np.full(n_records, np.nan), where=n_scored > 0)
    virus_score = mean.astype(np.float32)
    return Contigs(
        lengths=lengths,
        n_chunks=n_chunks,
        n_orfs=n_orfs,
        n_viral_chunks=np.bincount(owner[best[:, 1] >= best[:, 0]], minlength=n_records),
        virus_score=virus_score,
        is_virus=virus_score >= np.float32(threshold),
        status=np.select(
            [lengths < _CODON_BASES, n_orfs == 0, n_scored == 0],
            ["too_short", "no_orf", "failed"],
            default="ok",
        ),
    )


def format_contigs(ids: Iterable[str], contigs: Contigs) -> Iterator[str]:
    """Format the rows of `contigs.tsv`, one line per record, `NA` where there is no score."""
    prediction = np.where(contigs.is_virus, "virus", "others")
    prediction[np.isnan(contigs.virus_score)] = "NA"
    for name, label, row in zip(ids, prediction, zip(*contigs, strict=True), strict=True):
        length, chunks, orfs, viral, score, _, status = row
        text = "NA" if np.isnan(score) else str(score)
        yield f"{name}\t{length}\t{chunks}\t{orfs}\t{viral}\t{label}\t{text}\t{status}\n"


def write_contigs(path: str | os.PathLike[str], ids: Iterable[str], contigs: Contigs) -> None:
    """Write `contigs.tsv`: one row for every input record, in their order.

    Args:
        path: The file to write.
        ids: R record ids.
        contigs: Their summary.

    Raises:
        ValueError: If there is not one entry per id.
    """
    with replace_when_written(path) as file:
        file.write(CONTIGS_HEADER)
        file.writelines(format_contigs(ids, contigs))


def _check_scores(scores: NDArray[np.float32], n: int) -> NDArray[np.float32]:
    """Return the scores as float32, or raise when they are not n pairs."""
    if scores.shape != (n, 2):
        raise ValueError(f"{n} ORFs need scores of shape ({n}, 2), not {scores.shape}")
    return np.asarray(scores, dtype=np.float32)


def _is_scored(scores: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Tell which of the ORFs have a score; (M,)."""
    return np.asarray(np.isfinite(scores).all(axis=1))


def _best_scores(
    scores: NDArray[np.float32], group: NDArray[np.int64], n_groups: int
) -> NDArray[np.float32]:
    """Take the maximum of each score over the scored rows of a group; (G, 2), NaN without one."""
    best = np.full((n_groups, 2), np.nan, dtype=np.float32)
    scored = _is_scored(scores)
    np.fmax.at(best, group[scored], scores[scored])
    return best
