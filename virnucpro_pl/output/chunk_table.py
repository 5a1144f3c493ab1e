"""`chunks.tsv` and `chunks.bed`: where each chunk of a record lies, and what its ORFs say of it.

Both scores of a chunk are the largest over its frames. A chunk is called virus when its largest
score2 is at or above its largest score1, as in `prediction_results_highestscore.csv`. A score that
is not finite counts for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro_pl.calibration import score_log_odds
from virnucpro_pl.contracts import FRAMES, Inputs, OrfOrigin

CHUNKS_HEADER = (
    "seq_name\tchunk\tstart\tend\tn_orfs\tbest_frame\tothers_score\tvirus_score\tprediction"
)
NOT_SAMPLED = "not_sampled"
"""Prediction of a chunk that was not computed."""
BEST_FRAMES = (*FRAMES, "NA")
"""Of a chunk; the last is for one without an ORF that was scored."""
_NO_FRAME = len(FRAMES)
_FIRST_REVERSE = FRAMES.index("R1")
_CHUNKS = 1 << 16
"""Chunks, and records, of a block; a record with more chunks is a block of its own."""


class ChunkCalls(NamedTuple):
    """What the ORFs of each chunk say of it; chunks in the order of their records."""

    n_chunks: NDArray[np.int64]
    """(R,) chunks of each record."""
    n_orfs: NDArray[np.int32]
    """(K,) ORFs of each chunk, those that could not be scored included."""
    n_scored_orfs: NDArray[np.int32]
    """(K,) ORFs that could be scored."""
    others: NDArray[np.float32]
    """(K,) largest P(others) over the scored ORFs; NaN without one."""
    virus: NDArray[np.float32]
    """(K,) largest P(virus), likewise."""
    best_frame: NDArray[np.int8]
    """(K,) index into BEST_FRAMES of the ORF with the largest P(virus), the first of equal ones."""
    log_odds: NDArray[np.float64]
    """(K,) largest log-odds of virus that an ORF's two scores state; NaN without one. Near 1 they
    tell apart what P(virus) does not."""

    @property
    def record(self) -> NDArray[np.int64]:
        """(K,) record of each chunk."""
        return np.repeat(np.arange(len(self.n_chunks)), self.n_chunks)

    @property
    def is_scored(self) -> NDArray[np.bool_]:
        """(K,) whether an ORF of the chunk could be scored."""
        return self.n_scored_orfs > 0

    @property
    def is_virus(self) -> NDArray[np.bool_]:
        """(K,) whether the chunk is called virus; False without a score."""
        return np.asarray(self.virus >= self.others)


class ChunkBlock(NamedTuple):
    """Some records with all of their chunks."""

    rows: NDArray[np.int64]
    """(r,) the records."""
    names: list[str]
    """(r,) their ids."""
    calls: ChunkCalls
    """Of these records; `calls.record` counts from the first of them."""
    number: NDArray[np.int64]
    """(k,) number of each chunk in its record, from 1."""
    start: NDArray[np.int64]
    """(k,) first base of each chunk in its record, from 1."""
    end: NDArray[np.int64]
    """(k,) last base, from 1."""
    is_sampled: NDArray[np.bool_]
    """(k,) whether the chunk was computed."""

    @property
    def in_part(self) -> NDArray[np.bool_]:
        """(r,) whether some of a record's chunks were not computed."""
        left_out = self.calls.record[~self.is_sampled]
        return np.bincount(left_out, minlength=len(self.rows)) > 0


def summarise_chunks(
    n_chunks: NDArray[np.int64],
    record: NDArray[np.int64],
    chunk: NDArray[np.int64],
    frame: NDArray[np.int8],
    scores: NDArray[np.float32],
) -> ChunkCalls:
    """Go from ORFs to chunks.

    Args:
        n_chunks: (R,) chunks of each record.
        record: (M,) index of each ORF's record, in any order.
        chunk: (M,) number of each ORF's chunk in its record, from 0.
        frame: (M,) index of each ORF's frame into FRAMES.
        scores: (M, 2) float32.

    Raises:
        ValueError: If scores and ORFs differ in number, or an ORF names a chunk that is not there.
    """
    if scores.shape != (len(record), 2):
        raise ValueError(f"{len(record)} ORFs need two scores each, not {scores.shape}")
    outside = len(record) and not 0 <= record.min() <= record.max() < len(n_chunks)
    if outside or np.any((chunk < 0) | (chunk >= n_chunks[record])):
        raise ValueError(f"an ORF lies outside the chunks of the {len(n_chunks)} records")
    total = int(n_chunks.sum())
    group = (np.cumsum(n_chunks) - n_chunks)[record] + chunk  # (M,) chunk of each ORF among all
    scored = is_scored(scores)
    best = np.full((2, total), np.nan, np.float32)
    for score, column in zip(best, without_unscored(scores).T, strict=True):
        np.fmax.at(score, group, column)
    is_best = scored & (scores[:, 1] == best[1][group])
    log_odds = np.full(total, np.nan)
    np.fmax.at(log_odds, group, np.where(scored, score_log_odds(scores), np.nan))
    best_frame = np.full(total, _NO_FRAME, np.int8)
    np.minimum.at(best_frame, group[is_best], frame[is_best].astype(np.int8))
    return ChunkCalls(
        n_chunks=n_chunks,
        n_orfs=np.bincount(group, minlength=total).astype(np.int32),
        n_scored_orfs=np.bincount(group[scored], minlength=total).astype(np.int32),
        others=best[0],
        virus=best[1],
        best_frame=best_frame,
        log_odds=log_odds,
    )


def chunk_blocks(origin: OrfOrigin, calls: ChunkCalls) -> Iterator[ChunkBlock]:
    """Yield all records with their chunks, a block at a time, so that memory stays small."""
    ends = np.cumsum(calls.n_chunks)
    first = done = 0
    while first < len(ends):
        within = int(np.searchsorted(ends, done + _CHUNKS, side="right"))
        last = max(first + 1, min(within, first + _CHUNKS))
        rows, chunks = np.arange(first, last), slice(done, int(ends[last - 1]))
        of_block = _part(calls, slice(first, last), chunks)
        places = origin.places(rows)
        begin = np.cumsum(of_block.n_chunks) - of_block.n_chunks
        yield ChunkBlock(
            rows=rows,
            names=origin.contigs.ids(rows),
            calls=of_block,
            number=np.arange(len(of_block.virus)) - begin[of_block.record] + 1,
            start=places.start + 1,
            end=places.start + places.length,
            is_sampled=places.is_sampled,
        )
        first, done = last, chunks.stop


def _part(calls: ChunkCalls, records: slice, chunks: slice) -> ChunkCalls:
    return ChunkCalls(
        calls.n_chunks[records],
        calls.n_orfs[chunks],
        calls.n_scored_orfs[chunks],
        calls.others[chunks],
        calls.virus[chunks],
        calls.best_frame[chunks],
        calls.log_odds[chunks],
    )


def write_chunks(path: Path, blocks: Iterable[ChunkBlock], inputs: Inputs | None) -> None:
    """Write `chunks.tsv`: one row for every chunk of every record, `NA` without a scored ORF.

    The prediction of a chunk that was not computed is `not_sampled`, and `NA` is what else of it is
    not known.

    Args:
        path: The file to write.
        blocks: All records.
        inputs: Which file each record is of, where there is more than one.
    """
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(f"{CHUNKS_HEADER}{input_header(inputs)}\n")
        for block in blocks:
            file.writelines(_chunk_lines(block, input_cells(inputs, block.rows)))


def _chunk_lines(block: ChunkBlock, files: list[str]) -> Iterator[str]:
    calls = block.calls
    places = (calls.record, block.number, block.start, block.end, block.is_sampled)
    found = (calls.n_orfs, calls.best_frame, calls.is_virus)
    columns = (column.tolist() for column in (*places, *found))
    for owner, number, start, end, is_sampled, orfs, frame, is_virus, others, virus in zip(
        *columns, calls.others, calls.virus, strict=True
    ):
        if not is_sampled:
            call = f"NA\tNA\tNA\tNA\t{NOT_SAMPLED}"
        elif frame == _NO_FRAME:
            call = f"{orfs}\tNA\tNA\tNA\tNA"
        else:
            prediction = "virus" if is_virus else "others"
            call = f"{orfs}\t{BEST_FRAMES[frame]}\t{others!s}\t{virus!s}\t{prediction}"
        yield f"{block.names[owner]}\t{number}\t{start}\t{end}\t{call}{files[owner]}\n"


def write_bed(path: Path, blocks: Iterable[ChunkBlock]) -> None:
    """Write the chunks called virus as BED with six columns.

    Places count from 0 and the end is the first base behind the chunk; the score is 1000 times the
    virus_score; the strand is that of the best frame.

    Args:
        path: The file to write.
        blocks: All records.
    """
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for block in blocks:
            viral, calls = np.flatnonzero(block.calls.is_virus), block.calls
            score = np.rint(1000 * calls.virus[viral].astype(np.float64)).astype(np.int64)
            strand = np.where(calls.best_frame[viral] < _FIRST_REVERSE, "+", "-")
            integers = (calls.record, block.start - 1, block.end, block.number)
            columns = (column[viral].tolist() for column in integers)
            for owner, start, end, number, points, side in zip(
                *columns, score.tolist(), strand.tolist(), strict=True
            ):
                name = block.names[owner]
                file.write(f"{name}\t{start}\t{end}\t{name}_chunk_{number}\t{points}\t{side}\n")


def input_header(inputs: Inputs | None) -> str:
    """Give the end of a header: the column of the records' files, where there is more than one."""
    return "" if inputs is None else "\tinput"


def input_cells(inputs: Inputs | None, rows: NDArray[np.int64]) -> list[str]:
    """Give what stands in that column for some records, with the tab before it."""
    if inputs is None:
        return [""] * len(rows)
    return [f"\t{inputs.names[file]}" for file in inputs.file[rows].tolist()]


def is_scored(scores: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Tell which of the ORFs have a score; (M,)."""
    return np.asarray(np.isfinite(scores).all(axis=1))


def without_unscored(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give both scores of an ORF that could not be scored as NaN, which a maximum ignores."""
    return np.where(is_scored(scores)[:, None], scores, np.float32(np.nan))
