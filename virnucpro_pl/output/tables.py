"""The result tables: the two files of VirNucPro (Li et al. 2025) and one row per input record.

- `prediction_results.txt`: label and both scores of every ORF.
- `prediction_results_highestscore.csv`: one call per chunk (tab-separated for all its name).
- `contigs.tsv`: one row for every input record, those without an ORF included.

Scores are (M, 2) float32, P(others) and P(virus) of each ORF. A row with a number that is not
finite is an ORF that could not be scored: it stays in the tables, as `NA`, and counts for nothing.
Ids are asked for a block of rows at a time, so that six million of them are never held at once.
"""

import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PREDICTION_HEADER = "Sequence_ID\tPrediction\tscore1\tscore2\n"
HIGHEST_SCORE_HEADER = "Modified_ID\tIs_Virus\n"
CONTIGS_HEADER = (
    "seq_name\tlength\tn_chunks\tn_orfs\tn_viral_chunks\tprediction\tvirus_score\tstatus\n"
)
STATUSES = ("ok", "no_orf", "too_short", "failed", "skipped")
"""Of a record; all but the first are reasons why it has no score."""
CODON_BASES = 3
_ROWS = 1 << 14
_SORTED_ROWS = 1 << 18
"""ORFs that are sorted at a time; the sorted runs are merged from disk."""

Ids = Callable[[NDArray[np.int64]], list[str]]
"""Gives the ids of some rows."""


class ContigCalls(NamedTuple):
    """What the chunks of each input record say about it."""

    lengths: NDArray[np.int64]
    """(R,) bases."""
    n_chunks: NDArray[np.int64]
    """(R,) chunks, those without an ORF included."""
    n_orf_chunks: NDArray[np.int64]
    """(R,) chunks with an ORF."""
    n_scored_chunks: NDArray[np.int64]
    """(R,) chunks with an ORF that could be scored."""
    n_viral_chunks: NDArray[np.int64]
    """(R,) chunks that `prediction_results_highestscore.csv` calls True."""
    n_orfs: NDArray[np.int64]
    """(R,) ORFs, those that could not be scored included."""
    n_scored_orfs: NDArray[np.int64]
    """(R,) ORFs that could be scored."""
    virus_score: NDArray[np.float32]
    """(R,) mean over the scored chunks of the best P(virus) in the chunk; NaN without one."""
    is_virus: NDArray[np.bool_]
    """(R,) virus_score is at or above the threshold; False without a score."""
    status: NDArray[np.int8]
    """(R,) index into STATUSES."""


def write_prediction_results(path: Path, ids: Ids, scores: NDArray[np.float32]) -> None:
    """Write `prediction_results.txt`: one row per ORF, in their order.

    The label is the first maximum, so that a tie is `others`. Scores are written as numpy writes a
    float32: the shortest text that reads back as the same number. An ORF that could not be scored
    has the label `NA`.

    Args:
        path: The file to write.
        ids: Gives the ids of the ORFs.
        scores: (M, 2) float32.
    """
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(PREDICTION_HEADER)
        for rows in blocks(len(scores), _ROWS):
            file.writelines(_prediction_lines(ids(rows), scores[rows]))


def _prediction_lines(ids: Sequence[str], scores: NDArray[np.float32]) -> Iterator[str]:
    labels = np.where(scores[:, 1] > scores[:, 0], "virus", "others")
    labels[~is_scored(scores)] = "NA"
    for name, label, others, virus in zip(ids, labels, *scores.T, strict=True):
        yield f"{name}\t{label}\t{others!s}\t{virus!s}\n"


def write_highest_scores(path: Path, ids: Ids, scores: NDArray[np.float32], scratch: Path) -> None:
    """Write `prediction_results_highestscore.csv`: is the chunk viral, over all its frames?

    Modified_ID is the ORF id without its last two characters, the frame. Is_Virus is max(score2) >=
    max(score1), so that a tie is True here, other than in the labels of the ORFs. Rows are sorted
    as text, and a chunk without an ORF has none, all as in VirNucPro; a chunk of which no ORF could
    be scored is `NA`.

    Args:
        path: The file to write.
        ids: Gives the ids of the ORFs; those of one chunk may stand anywhere.
        scores: (M, 2) float32.
        scratch: Folder for sorted runs, which are removed.
    """
    runs = []
    for number, rows in enumerate(blocks(len(scores), _SORTED_ROWS)):
        run = scratch / f"sorted-{number}"
        # A tab sorts before whatever stands in ids, so that lines sort as their first column does.
        run.write_text("".join(sorted(_best_lines(ids(rows), scores[rows]))), encoding="utf-8")
        runs.append(run)
    with ExitStack() as stack:
        file = stack.enter_context(path.open("w", encoding="utf-8", newline="\n"))
        file.write(HIGHEST_SCORE_HEADER)
        opened = [stack.enter_context(run.open(encoding="utf-8", newline="\n")) for run in runs]
        for chunk, lines in groupby(heapq.merge(*opened), lambda line: line.partition("\t")[0]):
            file.write(f"{chunk}\t{_call(lines)}\n")
    for run in runs:
        run.unlink()


def _best_lines(ids: Sequence[str], scores: NDArray[np.float32]) -> list[str]:
    """Give chunk, best score1 and best score2 of each stretch of ORFs of one chunk."""
    chunks = [name[:-2] for name in ids]
    starts = [i for i, chunk in enumerate(chunks) if i == 0 or chunk != chunks[i - 1]]
    best = np.fmax.reduceat(_without_unscored(scores), starts, axis=0).tolist()
    return [
        f"{chunks[start]}\t{others!r}\t{virus!r}\n"
        for start, (others, virus) in zip(starts, best, strict=True)
    ]


def _call(lines: Iterable[str]) -> str:
    """Call a chunk by the lines of its stretches."""
    pairs = [tuple(map(float, line.split("\t")[1:])) for line in lines]
    scored = [pair for pair in pairs if not math.isnan(pair[0])]
    if not scored:
        return "NA"
    return str(max(virus for _, virus in scored) >= max(others for others, _ in scored))


def summarise_contigs(
    lengths: NDArray[np.int64],
    n_chunks: NDArray[np.int64],
    record: NDArray[np.int64],
    chunk: NDArray[np.int64],
    scores: NDArray[np.float32],
    threshold: float = 0.5,
    min_length: int = 0,
) -> ContigCalls:
    """Go from ORFs to records.

    The virus_score of a record is the mean over its chunks of the chunk's best score2, the record
    is called virus when that is at or above the threshold. Chunks without a scored ORF do not
    enter. The status is `skipped` for less than min_length, else `too_short` for less than one
    codon, else `no_orf` without an ORF, else `failed` if none of the ORFs could be scored, else
    `ok`.

    Args:
        lengths: (R,) bases of each record.
        n_chunks: (R,) chunks of each record.
        record: (M,) index of each ORF's record, in any order.
        chunk: (M,) number of each ORF's chunk in its record, from 0.
        scores: (M, 2) float32.
        threshold: Least virus_score of a record called virus, compared in float32, the precision
            in which the table states it.
        min_length: Bases of the shortest record that was cut into chunks.

    Returns:
        One entry for every record, in their order.

    Raises:
        ValueError: If scores and ORFs differ in number, or an ORF names a chunk that is not there.
    """
    n_records, n_orfs = len(lengths), np.bincount(record, minlength=len(lengths))
    if scores.shape != (len(record), 2):
        raise ValueError(f"{len(record)} ORFs need two scores each, not {scores.shape}")
    if len(n_orfs) > n_records or np.any((chunk < 0) | (chunk >= n_chunks[record])):
        raise ValueError(f"an ORF lies outside the chunks of the {n_records} records")
    owner = np.repeat(np.arange(n_records), n_chunks)  # (K,) record of each chunk
    group = (np.cumsum(n_chunks) - n_chunks)[record] + chunk  # (M,) chunk of each ORF
    has_orf = np.bincount(group, minlength=len(owner)) > 0
    others, virus = _best_of_groups(scores, group, len(owner))
    scored = ~np.isnan(virus)
    n_scored_chunks = np.bincount(owner[scored], minlength=n_records)
    total = np.bincount(owner[scored], weights=virus[scored], minlength=n_records)  # float64
    mean = np.full(n_records, np.nan)
    np.divide(total, n_scored_chunks, out=mean, where=n_scored_chunks > 0)
    virus_score = mean.astype(np.float32)
    return ContigCalls(
        lengths=lengths,
        n_chunks=n_chunks,
        n_orf_chunks=np.bincount(owner[has_orf], minlength=n_records),
        n_scored_chunks=n_scored_chunks,
        n_viral_chunks=np.bincount(owner[virus >= others], minlength=n_records),
        n_orfs=n_orfs,
        n_scored_orfs=np.bincount(record[is_scored(scores)], minlength=n_records),
        virus_score=virus_score,
        is_virus=virus_score >= np.float32(threshold),
        status=np.select(
            [lengths < min_length, lengths < CODON_BASES, n_orfs == 0, n_scored_chunks == 0],
            [np.int8(STATUSES.index(n)) for n in ("skipped", "too_short", "no_orf", "failed")],
            np.int8(STATUSES.index("ok")),
        ),
    )


def write_contigs(path: Path, ids: Ids, calls: ContigCalls) -> None:
    """Write `contigs.tsv`: one row for every input record, in their order, `NA` without a score.

    Args:
        path: The file to write.
        ids: Gives the ids of the records.
        calls: What their chunks say of them.
    """
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(CONTIGS_HEADER)
        for rows in blocks(len(calls.lengths), _ROWS):
            file.writelines(_contig_lines(ids(rows), calls, rows))


def _contig_lines(ids: Sequence[str], calls: ContigCalls, rows: NDArray[np.int64]) -> Iterator[str]:
    columns = (
        calls.lengths,
        calls.n_chunks,
        calls.n_orfs,
        calls.n_viral_chunks,
        calls.is_virus,
        calls.virus_score,
        calls.status,
    )
    lines = zip(ids, *(column[rows] for column in columns), strict=True)
    for name, length, chunks, orfs, viral, is_virus, score, status in lines:
        prediction = "virus" if is_virus else "others"
        call = "NA\tNA" if np.isnan(score) else f"{prediction}\t{score!s}"
        yield f"{name}\t{length}\t{chunks}\t{orfs}\t{viral}\t{call}\t{STATUSES[status]}\n"


def is_scored(scores: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Tell which of the ORFs have a score; (M,)."""
    return np.asarray(np.isfinite(scores).all(axis=1))


def _without_unscored(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give both scores of an ORF that could not be scored as NaN, which a maximum ignores."""
    return np.where(is_scored(scores)[:, None], scores, np.float32(np.nan))


def _best_of_groups(
    scores: NDArray[np.float32], group: NDArray[np.int64], n_groups: int
) -> NDArray[np.float32]:
    """Take the maximum of each score over the scored rows of a group; (2, G), NaN without one."""
    best = np.full((2, n_groups), np.nan, dtype=np.float32)
    for score, column in zip(best, _without_unscored(scores).T, strict=True):
        np.fmax.at(score, group, column)
    return best


def blocks(count: int, size: int) -> Iterator[NDArray[np.int64]]:
    """Places 0 to `count`, at most `size` at a time."""
    for start in range(0, count, size):
        yield np.arange(start, min(start + size, count))
