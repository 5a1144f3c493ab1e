"""`regions.tsv` and `regions.fasta`: viral stretches within records, such as prophages."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro_pl.contracts import Contigs
from virnucpro_pl.output.chunk_table import ChunkBlock, ChunkCalls
from virnucpro_pl.output.fasta import open_fasta, write_record

REGIONS_HEADER = "seq_name\tregion\tstart\tend\tn_chunks\tn_viral\tmean_virus_score\textent\n"
_WHOLE_TENTHS = 9
"""Of a record: from so many on a region is the whole of it."""


class Regions(NamedTuple):
    """Viral stretches within the records of a block, in their order."""

    record: NDArray[np.int64]
    """(G,) record, counted from the first of the block."""
    number: NDArray[np.int64]
    """(G,) number of the region in its record, from 1."""
    first: NDArray[np.int64]
    """(G,) its first chunk, which is viral, among all chunks of the block."""
    last: NDArray[np.int64]
    """(G,) its last chunk, which is viral, too."""
    n_viral: NDArray[np.int64]
    """(G,) viral chunks in it; all others have no score."""
    mean_virus_score: NDArray[np.float32]
    """(G,) mean of their P(virus)."""


def find_regions(
    calls: ChunkCalls, gap: int, least: int, left_out: NDArray[np.bool_] | None = None
) -> Regions:
    """Find the longest runs of chunks called virus.

    A chunk called others ends a run, and so do more chunks in a row without a score than `gap`.

    Args:
        calls: The chunks of some records.
        gap: Chunks in a row without a score that a region may hold.
        least: Viral chunks that a region has at least.
        left_out: (r,) whether a record is not searched; None for all of them.
    """
    scored = np.flatnonzero(calls.is_scored)
    viral, owner = calls.is_virus[scored], calls.record[scored]
    near = (np.diff(scored) <= gap + 1) & (owner[1:] == owner[:-1])
    joined = np.concatenate([[False], viral[1:] & viral[:-1] & near, [False]])
    first = np.flatnonzero(viral & ~joined[:-1])  # among the scored chunks
    last = np.flatnonzero(viral & ~joined[1:])
    n_viral = last - first + 1
    # What stands between a region and the next is not viral, and adds nothing to the sum.
    numbers = np.where(viral, calls.virus[scored], 0).astype(np.float64)
    mean = (np.add.reduceat(numbers, first) if len(first) else np.empty(0)) / n_viral
    kept = n_viral >= least
    if left_out is not None:
        kept &= ~left_out[owner[first]]
    record = owner[first[kept]]
    return Regions(
        record=record,
        number=np.arange(len(record)) - np.searchsorted(record, record) + 1,
        first=scored[first[kept]],
        last=scored[last[kept]],
        n_viral=n_viral[kept],
        mean_virus_score=mean[kept].astype(np.float32),
    )


def write_regions(
    folder: Path,
    blocks: Iterable[ChunkBlock],
    contigs: Contigs,
    *,
    gap: int,
    least: int,
    compress: bool,
) -> int:
    """Write `regions.tsv` and `regions.fasta`, headers and nothing where there are no regions.

    A record of which only a sample of the chunks was computed has none: between two chunks of the
    sample a region could hide, and two viral ones need not be of one region.

    Args:
        folder: Where.
        blocks: All records.
        contigs: The same records, with their letters.
        gap: As in `find_regions`.
        least: As in `find_regions`.
        compress: Whether to write `regions.fasta.gz` instead.

    Returns:
        How many regions there are.
    """
    count, bases = 0, contigs.lengths
    with (
        (folder / "regions.tsv").open("w", encoding="utf-8", newline="\n") as table,
        open_fasta(folder / "regions.fasta", compress=compress) as fasta,
    ):
        table.write(REGIONS_HEADER)
        for block in blocks:
            regions = find_regions(block.calls, gap, least, block.in_part)
            count += len(regions.record)
            starts, ends = block.start[regions.first], block.end[regions.last]
            chunks = regions.last - regions.first + 1
            all_bases = bases[block.rows[regions.record]]
            whole = 10 * (ends - starts + 1) >= _WHOLE_TENTHS * all_bases
            columns = (regions.record, regions.number, starts, ends, chunks, regions.n_viral, whole)
            letters, before = b"", -1
            for record, number, start, end, n_chunks, n_viral, is_whole, score in zip(
                *(column.tolist() for column in columns), regions.mean_virus_score, strict=True
            ):
                if record != before:
                    [letters], before = contigs.sequences(block.rows[record : record + 1]), record
                name = f"{block.names[record]}|region_{number}"
                cells = (block.names[record], name, start, end, n_chunks, n_viral, score)
                extent = "whole" if is_whole else "partial"
                table.write("\t".join(map(str, (*cells, extent))) + "\n")
                write_record(fasta, f"{name} {start}-{end}", letters[start - 1 : end])
    return count
