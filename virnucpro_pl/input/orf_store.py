"""The open reading frames of an input, in a store on disk that every rank and worker maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from virnucpro_pl.contracts import ChunkPlaces
from virnucpro_pl.errors import UsageError
from virnucpro_pl.input.orfs import Orfs, find_orfs, orf_id, plan_all_chunks, sample_sizes
from virnucpro_pl.input.packing import plan_packs
from virnucpro_pl.input.records import (
    SHORTER,
    FileRecords,
    RecordStore,
    at_most,
    cut_out,
    map_array,
    write_array,
)

Kind = Literal["nucleotide", "protein"]
"""Which of an ORF's two strings."""

_BLOCK = 64 << 20
"""Bases of contigs that are searched for ORFs at a time."""
_COLUMNS: dict[str, type[np.generic]] = {
    "nucleotides": np.uint8,
    "nucleotide_ends": np.int64,
    "proteins": np.uint8,
    "protein_ends": np.int64,
    "record": np.int64,
    "chunk": np.int64,
    "frame": np.int8,
    "n_chunks": np.int64,
    "n_orfs": np.int64,
}
"""Files of the store, as in `Orfs`; ends instead of offsets, so that blocks can be appended."""


class OrfStore:
    """All ORFs of an input, mapped from disk; pickled by its path alone.

    Attributes:
        contigs: The input's records.
        columns: Arrays of `Orfs`, by name.
        size: Bases of a chunk.
        min_length: Bases of the shortest contig that is cut into chunks.
        max_chunks: Chunks of a contig that are searched at most; None for all.
        sha256: Hash of the input and of these.
        unit: What a row is, for messages.
    """

    unit = "ORFs"

    def __init__(self, folder: Path) -> None:
        """Map a store.

        Args:
            folder: Where `write_orfs` put it, with the records.
        """
        self.folder = folder
        self.contigs = RecordStore(folder)
        self.columns = {n: map_array(folder / f"orfs.{n}", t) for n, t in _COLUMNS.items()}
        cut = map(int, (folder / "orfs.cut").read_text().split())
        self.size, self.min_length, max_chunks = cut
        self.max_chunks = max_chunks or None
        shortest = f"/{self.min_length}" if self.min_length else ""
        most = f"/at most {max_chunks}" if max_chunks else ""
        self.sha256 = f"{self.contigs.sha256}/{self.size}{shortest}{most}"

    def __reduce__(self) -> tuple[type[OrfStore], tuple[Path]]:
        """Send the path to a worker, not the bytes."""
        return OrfStore, (self.folder,)

    def __len__(self) -> int:
        """Count the ORFs."""
        return len(self.columns["record"])

    @property
    def counts(self) -> dict[str, int]:
        """What a reader of the results should know of the input, by name."""
        if not self.min_length:
            return self.contigs.counts
        short = int(np.count_nonzero(self.contigs.lengths < self.min_length))
        return {**self.contigs.counts, SHORTER: short}

    @property
    def files(self) -> list[FileRecords]:
        """The files that the contigs are of, in order."""
        return self.contigs.files

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(M,) residues of each protein."""
        return self.letter_counts("protein")

    def letter_counts(self, kind: Kind) -> NDArray[np.int64]:
        """(M,) letters of each `protein` or `nucleotide` string."""
        return np.diff(self.columns[f"{kind}_ends"], prepend=0)

    def lengths_of(
        self, kind: Kind, rows: NDArray[np.int64], most: int | None = None
    ) -> NDArray[np.int64]:
        """(n,) letters of some ORFs' `protein` or `nucleotide` strings, so many at most."""
        ends = self.columns[f"{kind}_ends"]
        return at_most(ends[rows] - np.where(rows > 0, ends[rows - 1], 0), most)

    @property
    def n_sampled(self) -> NDArray[np.int64]:
        """(R,) chunks of each contig that are searched."""
        return sample_sizes(self.columns["n_chunks"], self.max_chunks)

    def places(self, contigs: NDArray[np.int64]) -> ChunkPlaces:
        """Give the chunks of some contigs."""
        offsets = self.contigs.offsets
        lengths = offsets[contigs + 1] - offsets[contigs]
        chunks = plan_all_chunks(lengths, self.size, self.min_length, self.max_chunks)
        return ChunkPlaces(chunks.start, chunks.length, chunks.is_sampled)

    def ids(self, rows: NDArray[np.int64]) -> list[str]:
        """Ids of some ORFs."""
        record, chunk, frame = (self.columns[name][rows] for name in ("record", "chunk", "frame"))
        names = self.contigs.ids(record)
        return [orf_id(*place) for place in zip(names, chunk.tolist(), frame.tolist(), strict=True)]

    def sequences(
        self, kind: Kind, rows: NDArray[np.int64], most: int | None = None
    ) -> list[bytes]:
        """`protein` or `nucleotide` strings of some ORFs, of each so many letters at most."""
        ends, letters = self.columns[f"{kind}_ends"], self.columns[f"{kind}s"]
        starts = np.where(rows > 0, ends[rows - 1], 0)
        return cut_out(letters, starts, ends[rows], most)


def write_orfs(
    contigs: RecordStore, size: int, min_length: int = 0, max_chunks: int | None = None
) -> OrfStore:
    """Find the ORFs of the contigs and append them to their store, a block at a time.

    Args:
        contigs: The input's records.
        size: Bases of a chunk.
        min_length: Bases of the shortest contig that is cut into chunks.
        max_chunks: Chunks of a contig that are searched at most; None for all.

    Raises:
        UsageError: If there is no room for them.
    """
    folder = contigs.folder
    try:
        with ExitStack() as stack:
            files = {
                name: stack.enter_context((folder / f"orfs.{name}").open("wb")) for name in _COLUMNS
            }
            ends = {"nucleotide": 0, "protein": 0}
            for first, orfs in _blocks(contigs, size, min_length, max_chunks):
                _append(files, orfs, first, ends)
        (folder / "orfs.cut").write_text(f"{size} {min_length} {max_chunks or 0}")
    except OSError as error:
        raise UsageError(f"The ORFs cannot be stored in {folder}: {error}") from error
    return OrfStore(folder)


def _blocks(
    contigs: RecordStore, size: int, min_length: int, max_chunks: int | None
) -> Iterator[tuple[int, Orfs]]:
    for block in plan_packs(contigs.lengths, _BLOCK, specials=0):
        offsets = contigs.offsets[block.start : block.stop + 1]
        yield block.start, find_orfs(contigs.residues, offsets, size, min_length, max_chunks)


def _append(files: Mapping[str, IO[bytes]], orfs: Orfs, first: int, ends: dict[str, int]) -> None:
    """Write a block's columns; records are numbered from `first`, ends go on from `ends`."""
    columns: dict[str, NDArray[Any]] = {
        "nucleotides": orfs.nucleotides,
        "nucleotide_ends": orfs.nucleotide_offsets[1:] + ends["nucleotide"],
        "proteins": orfs.proteins,
        "protein_ends": orfs.protein_offsets[1:] + ends["protein"],
        "record": orfs.record + first,
        "chunk": orfs.chunk,
        "frame": orfs.frame,
        "n_chunks": orfs.n_chunks,
        "n_orfs": orfs.n_orfs,
    }
    for name, dtype in _COLUMNS.items():
        write_array(files[name], columns[name].astype(dtype, copy=False))
    ends["nucleotide"] += len(orfs.nucleotides)
    ends["protein"] += len(orfs.proteins)
