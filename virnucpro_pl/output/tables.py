"""The result tables: the two files of VirNucPro (Li et al. 2025) and one row per input record.

- `prediction_results.txt`: label and both scores of every ORF.
- `prediction_results_highestscore.csv`: one call per chunk (tab-separated for all its name).
- `contigs.tsv`: one row for every input record, those without an ORF included.

Scores are (M, 2) float32, P(others) and P(virus) of each ORF. A row with a number that is not
finite is an ORF that could not be scored: it stays in the tables, as `NA`, and counts for nothing.
Ids are asked for a block of rows at a time, so that six million of them are never held at once.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro_pl.calibration import Calibration
from virnucpro_pl.contracts import Inputs
from virnucpro_pl.output.chunk_table import (
    ChunkCalls,
    input_cells,
    input_header,
    is_scored,
    without_unscored,
)
from virnucpro_pl.output.contig_rule import (
    CALLS,
    TIERS,
    RuleCalls,
    as_written,
    call_by_rule,
    rounded,
)
from virnucpro_pl.output.probabilities import (
    PROBABILITY_HEADER,
    RecordProbabilities,
    record_probabilities,
)
from virnucpro_pl.output.sorted_lines import sort_lines

PREDICTION_HEADER = "Sequence_ID\tPrediction\tscore1\tscore2\n"
HIGHEST_SCORE_HEADER = "Modified_ID\tIs_Virus\n"
CONTIGS_HEADER = (
    "seq_name\tlength\tn_chunks\tn_orfs\tn_viral_chunks\tprediction\tvirus_score\tstatus"
    "\tweighted_delta\tcall\ttier\tn_confident_viral\tn_confident_others\tn_ambiguous"
    f"\t{PROBABILITY_HEADER}\tn_sampled"
)
STATUSES = ("ok", "no_orf", "too_short", "failed", "skipped", "no_orf_in_sample")
"""Of a record; all but the first are reasons why it has no score."""
CODON_BASES = 3
_ROWS = 1 << 14

Ids = Callable[[NDArray[np.int64]], list[str]]
"""Gives the ids of some rows."""


class ContigCalls(NamedTuple):
    """What the chunks of each input record say about it."""

    lengths: NDArray[np.int64]
    """(R,) bases."""
    n_chunks: NDArray[np.int64]
    """(R,) chunks, those without an ORF and those not sampled included."""
    n_sampled: NDArray[np.int64]
    """(R,) chunks that were computed; all that is said below is of these."""
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
    rule: RuleCalls
    """What the rule of `contig_rule` says."""
    probabilities: RecordProbabilities
    """How likely they are viral, where the classifier knows."""


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
    for name, label, others, virus in zip(ids, labels.tolist(), *scores.T, strict=True):
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
    stretches = (_best_lines(ids(rows), scores[rows]) for rows in blocks(len(scores), _ROWS))
    # A tab sorts before whatever stands in ids, so that lines sort as their first column does.
    ordered = sort_lines(chain.from_iterable(stretches), scratch)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(HIGHEST_SCORE_HEADER)
        cells = (line.split("\t") for line in ordered)
        for chunk, stretches_of_one in groupby(cells, itemgetter(0)):
            file.write(f"{chunk}\t{_call(stretches_of_one)}\n")


def _best_lines(ids: Sequence[str], scores: NDArray[np.float32]) -> list[str]:
    """Give chunk, best score1 and best score2 of each stretch of ORFs of one chunk."""
    chunks = [name[:-2] for name in ids]
    starts = [i for i, chunk in enumerate(chunks) if i == 0 or chunk != chunks[i - 1]]
    best = np.fmax.reduceat(without_unscored(scores), starts, axis=0).tolist()
    return [
        f"{chunks[start]}\t{others!r}\t{virus!r}\n"
        for start, (others, virus) in zip(starts, best, strict=True)
    ]


def _call(stretches: Iterable[list[str]]) -> str:
    """Call a chunk by the best scores of its stretches."""
    pairs = [(float(o), float(v)) for _, o, v in stretches if o != "nan"]
    if not pairs:
        return "NA"
    best_others, best_virus = pairs[0] if len(pairs) == 1 else map(max, zip(*pairs, strict=True))
    return str(best_virus >= best_others)


def summarise_contigs(
    lengths: NDArray[np.int64],
    chunks: ChunkCalls,
    threshold: float = 0.5,
    min_length: int = 0,
    calibration: Calibration | None = None,
    prevalence: float | None = None,
    max_fdr: float | None = None,
    n_sampled: NDArray[np.int64] | None = None,
) -> ContigCalls:
    """Go from chunks to records.

    The virus_score of a record is the mean over its chunks of the chunk's best score2, the record
    is called virus when that is at or above the threshold. Chunks without a scored ORF do not
    enter. The status is `skipped` for less than min_length, else `too_short` for less than one
    codon, else `no_orf_in_sample` without an ORF where some chunks were not searched for one, else
    `no_orf` without an ORF, else `failed` if none of the ORFs could be scored, else `ok`.

    Args:
        lengths: (R,) bases of each record.
        chunks: All of their chunks.
        threshold: Least virus_score of a record called virus, compared in float32, the precision
            in which the table states it.
        calibration: What the classifier's scores mean, if it knows.
        prevalence: Share of virus that is expected among the records, if that is known.
        max_fdr: Where it is given, the largest false discovery rate of a record called virus,
            whatever its virus_score.
        min_length: Bases of the shortest record that was cut into chunks.
        n_sampled: (R,) chunks of each record that were computed; None where all were.

    Returns:
        One entry for every record, in their order.
    """
    owner, scored, count = chunks.record, chunks.is_scored, len(lengths)  # owner: (K,)
    n_scored_chunks = np.bincount(owner[scored], minlength=count)
    total = np.bincount(owner[scored], weights=chunks.virus[scored], minlength=count)  # float64
    mean = np.full(count, np.nan)
    np.divide(total, n_scored_chunks, out=mean, where=n_scored_chunks > 0)
    virus_score = mean.astype(np.float32)
    n_orfs = _sums(owner, chunks.n_orfs, count)
    n_sampled = chunks.n_chunks if n_sampled is None else n_sampled
    no_orf = n_orfs == 0
    reasons = {
        "skipped": lengths < min_length,
        "too_short": lengths < CODON_BASES,
        "no_orf_in_sample": no_orf & (n_sampled < chunks.n_chunks),
        "no_orf": no_orf,
        "failed": n_scored_chunks == 0,
    }
    probabilities = record_probabilities(chunks, calibration, prevalence)
    return ContigCalls(
        lengths=lengths,
        n_chunks=chunks.n_chunks,
        n_sampled=n_sampled,
        n_orf_chunks=np.bincount(owner[chunks.n_orfs > 0], minlength=count),
        n_scored_chunks=n_scored_chunks,
        n_viral_chunks=np.bincount(owner[chunks.is_virus], minlength=count),
        n_orfs=n_orfs,
        n_scored_orfs=_sums(owner, chunks.n_scored_orfs, count),
        virus_score=virus_score,
        is_virus=virus_score >= np.float32(threshold)
        if max_fdr is None
        else probabilities.fdr <= max_fdr,
        status=np.select(
            list(reasons.values()),
            [np.int8(STATUSES.index(name)) for name in reasons],
            np.int8(STATUSES.index("ok")),
        ),
        rule=call_by_rule(
            owner[scored],
            as_written(chunks.others[scored]),
            as_written(chunks.virus[scored]),
            count,
        ),
        probabilities=probabilities,
    )


def _sums(owner: NDArray[np.int64], numbers: NDArray[np.int32], count: int) -> NDArray[np.int64]:
    """Add up a whole number of each chunk over each record; (R,)."""
    return np.bincount(owner, weights=numbers, minlength=count).astype(np.int64)


def write_contigs(path: Path, ids: Ids, calls: ContigCalls, inputs: Inputs | None = None) -> None:
    """Write `contigs.tsv`: one row for every input record, in their order, `NA` without a score.

    Args:
        path: The file to write.
        ids: Gives the ids of the records.
        calls: What their chunks say of them.
        inputs: Which file each record is of, where there is more than one.
    """
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(f"{CONTIGS_HEADER}{input_header(inputs)}\n")
        for rows in blocks(len(calls.lengths), _ROWS):
            file.writelines(_contig_lines(ids(rows), calls, rows, input_cells(inputs, rows)))


def _contig_lines(
    ids: Sequence[str], calls: ContigCalls, rows: NDArray[np.int64], files: list[str]
) -> Iterator[str]:
    counts = (calls.lengths, calls.n_chunks, calls.n_orfs, calls.n_viral_chunks, calls.n_sampled)
    verdicts = (calls.status, calls.is_virus, ~np.isnan(calls.virus_score))
    columns = (column[rows].tolist() for column in (*counts, *verdicts))
    scores = calls.virus_score[rows]
    cells = zip(_rule_cells(calls.rule, rows), calls.probabilities.cells(rows), files, strict=True)
    lines = zip(ids, cells, scores, *columns, strict=True)
    for name, (rule, chances, file), score, length, chunks, orfs, viral, sampled, *rest in lines:
        status, is_virus, has_score = rest
        prediction = "virus" if is_virus else "others"
        call = f"{prediction}\t{score!s}" if has_score else "NA\tNA"
        row = f"{name}\t{length}\t{chunks}\t{orfs}\t{viral}\t{call}\t{STATUSES[status]}"
        yield f"{row}\t{rule}\t{chances}\t{sampled}{file}\n"


def _rule_cells(rule: RuleCalls, rows: NDArray[np.int64]) -> Iterator[str]:
    """Give the columns that the rule adds."""
    calls = (rule.call, rule.tier, rule.n_confident_viral, rule.n_confident_others)
    columns = (column[rows].tolist() for column in (*calls, rule.n_ambiguous))
    deltas = rounded(rule.weighted_delta[rows])
    for delta, call, tier, *counts in zip(deltas, *columns, strict=True):
        yield "\t".join([delta, CALLS[call], TIERS[tier], *map(str, counts)])


def blocks(count: int, size: int) -> Iterator[NDArray[np.int64]]:
    """Places 0 to `count`, at most `size` at a time."""
    for start in range(0, count, size):
        yield np.arange(start, min(start + size, count))
