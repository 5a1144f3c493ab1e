"""From contigs to packs of open reading frames, each with its protein and its nucleotides."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from math import ceil
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from virnucpro_pl.errors import UsageError, listed
from virnucpro_pl.input.alphabets import DNA, PRINTABLE
from virnucpro_pl.input.datamodule import SequenceDataModule
from virnucpro_pl.input.orfs import (
    POOLED_RESIDUES,
    Orfs,
    count_unusual_letters,
    find_orfs,
    orf_id,
)
from virnucpro_pl.input.packing import plan_packs
from virnucpro_pl.input.reader import read_records
from virnucpro_pl.input.records import RecordStore, map_array
from virnucpro_pl.input.tokens import PackedBatch, Tokenizer, pack

log = logging.getLogger(__name__)

_BLOCK = 64 << 20
"""Bases of contigs that are searched for ORFs at a time."""
_ROWS = 65_536
"""ORFs that are written at a time."""
_SHAPES = 32
"""Steps up to a full pack in which the size of nucleotide packs is chosen."""
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


class OrfBatch(NamedTuple):
    """ORFs as one forward pass of both models takes them."""

    proteins: PackedBatch
    """Of ESM-2."""
    nucleotides: PackedBatch
    """Of DNABERT-S, of the same rows in the same order."""
    following: OrfBatch | None = None
    """The next batch, where the device is to begin with it already."""

    @property
    def rows(self) -> Tensor:
        """(N,) int64 row of each ORF; on the host."""
        return self.proteins.rows

    @property
    def ids(self) -> tuple[str, ...]:
        """(N,) id of each ORF."""
        return self.proteins.ids

    @property
    def tokens(self) -> Tensor:
        """(T,) tokens of the proteins, by which packs are bounded."""
        return self.proteins.tokens

    def to(self, device: torch.device) -> OrfBatch:
        """Copy what the models read to a device, without waiting for it."""
        return OrfBatch(self.proteins.to(device), self.nucleotides.to(device))


class OrfStore:
    """All ORFs of an input, mapped from disk; pickled by its path alone.

    Attributes:
        contigs: The input's records.
        columns: Arrays of `Orfs`, by name.
        sha256: Hash of the input and of the length of a chunk.
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
        self.size = int((folder / "orfs.size").read_text())
        self.sha256 = f"{self.contigs.sha256}/{self.size}"

    def __reduce__(self) -> tuple[type[OrfStore], tuple[Path]]:
        """Send the path to a worker, not the bytes."""
        return OrfStore, (self.folder,)

    def __len__(self) -> int:
        """Count the ORFs."""
        return len(self.columns["record"])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(M,) residues of each protein."""
        return self.letter_counts("protein")

    def letter_counts(self, kind: str) -> NDArray[np.int64]:
        """(M,) letters of each `protein` or `nucleotide` string."""
        return np.diff(self.columns[f"{kind}_ends"], prepend=0)

    def ids(self, rows: NDArray[np.int64]) -> list[str]:
        """Ids of some ORFs."""
        record, chunk, frame = (self.columns[name][rows] for name in ("record", "chunk", "frame"))
        names = self.contigs.ids(record)
        return [orf_id(*place) for place in zip(names, chunk.tolist(), frame.tolist(), strict=True)]

    def sequences(self, kind: str, rows: NDArray[np.int64]) -> list[bytes]:
        """`protein` or `nucleotide` strings of some ORFs."""
        ends, letters = self.columns[f"{kind}_ends"], self.columns[f"{kind}s"]
        starts = np.where(rows > 0, ends[rows - 1], 0)
        return [letters[a:b].tobytes() for a, b in zip(starts, ends[rows], strict=True)]


def write_orfs(contigs: RecordStore, size: int) -> OrfStore:
    """Find all ORFs of the contigs and append them to their store, a block at a time.

    Args:
        contigs: The input's records.
        size: Bases of a chunk.

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
            for first, orfs in _blocks(contigs, size):
                _append(files, orfs, first, ends)
        (folder / "orfs.size").write_text(str(size))
    except OSError as error:
        raise UsageError(f"The ORFs cannot be stored in {folder}: {error}") from error
    return OrfStore(folder)


def _blocks(contigs: RecordStore, size: int) -> Iterator[tuple[int, Orfs]]:
    for block in plan_packs(contigs.lengths, _BLOCK, specials=0):
        offsets = contigs.offsets[block.start : block.stop + 1]
        yield block.start, find_orfs(contigs.residues, offsets, size)


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
        columns[name].astype(dtype, copy=False).tofile(files[name])
    ends["nucleotide"] += len(orfs.nucleotides)
    ends["protein"] += len(orfs.proteins)


class OrfPacks(Dataset[list[OrfBatch]]):
    """Packs of ORFs, tokenised for both models when asked for."""

    def __init__(
        self,
        store: OrfStore,
        packs: list[NDArray[np.int64]],
        proteins: Tokenizer,
        nucleotides: Tokenizer,
        max_length: int | None = None,
    ) -> None:
        """Keep what a worker needs.

        Args:
            store: The ORFs.
            packs: Rows of each pack.
            proteins: ESM-2's tokenizer.
            nucleotides: DNABERT-S's tokenizer.
            max_length: Residues, and codons, of an ORF that are kept; None for all.
        """
        self.max_length = max_length
        self.store = store
        self.packs = packs
        self.proteins = proteins
        self.nucleotides = nucleotides

    def __len__(self) -> int:
        """Count the packs."""
        return len(self.packs)

    def __getitem__(self, index: int) -> list[OrfBatch]:
        """Tokenise one pack."""
        rows = self.packs[index]
        ids = self.store.ids(rows)
        proteins, nucleotides = (self.store.sequences(k, rows) for k in ("protein", "nucleotide"))
        if self.max_length is not None:
            proteins = [p[: self.max_length] for p in proteins]
            nucleotides = [n[: 3 * self.max_length] for n in nucleotides]
        return [
            OrfBatch(
                pack(rows, ids, proteins, self.proteins, pool_limit=POOLED_RESIDUES),
                pack(rows, ids, nucleotides, self.nucleotides),
            )
        ]


class ContigDataModule(SequenceDataModule):
    """Reads contigs or reads, and serves their ORFs as packs for both models.

    Attributes:
        store: The ORFs, from `setup` on; the contigs are in `store.contigs`.
    """

    store: OrfStore  # type: ignore[assignment]

    def __init__(
        self,
        path: str | Path,
        length: int = 500,
        save_orfs: bool = False,
        tokens_per_batch: int | None = None,
        num_workers: int = 1,
        max_length: int | None = None,
        letters: Literal["iupac", "original"] = "iupac",
        check_molecule: bool = True,
    ) -> None:
        """Configure the input; nothing is read yet.

        Args:
            path: FASTA or FASTQ file of DNA, plain or gz, bz2, xz, zst compressed.
            length: Bases of a chunk: 500, or 300 with the classifier that was trained on 300.
            save_orfs: Whether to write the ORFs to the output folder, as
                `<input>_identified_nucleotide.fa` and `<input>_identified_protein.faa`.
            tokens_per_batch: Protein tokens of a pack, special tokens included; None for 16,384 on
                a GPU and 2,048 on a CPU.
            num_workers: DataLoader processes of each rank; 0 tokenises in the rank itself.
            max_length: Residues of an ORF, and three times as many bases, that are embedded; None
                for all.
            letters: `iupac` takes A, C, G, T, N and the IUPAC codes, and reads U as T. `original`
                takes any printable character but `>` as it is, as VirNucPro does: a codon with one
                that is not A, C, G or T yields no residue.
            check_molecule: Whether to refuse proteins: input of which more than a tenth of the
                letters are no bases.
        """
        super().__init__(path, tokens_per_batch, num_workers, max_length, check_molecule)
        if length < 3:
            raise UsageError(
                f"--data.length must be at least 3, a codon, not {length}: VirNucPro's classifiers "
                "take chunks of 500 or 300 bases"
            )
        self.length = length
        self.save_orfs = save_orfs
        self.letters = letters

    def read(self, folder: Path) -> None:
        """Read the contigs and find their ORFs.

        Raises:
            InputError: If the file cannot be read completely and exactly.
            UsageError: If nobody will embed or write the ORFs.
        """
        trainer = self._trainer()
        if not hasattr(trainer.lightning_module, "embedders"):
            model = type(trainer.lightning_module).__name__
            raise UsageError(f"A ContigDataModule is for VirNucPro, not for {model}")
        if self.save_orfs and self._workspace() is None:
            raise UsageError("save_orfs writes to the folder of a TableWriter, and there is none")
        contigs = read_records(
            self.path,
            DNA if self.letters == "iupac" else PRINTABLE,
            folder,
            allow_empty_records=True,
            check_molecule=self.check_molecule,
        )
        unusual = count_unusual_letters(contigs.residues)
        if unusual:
            log.warning(
                "%s: kept as they are, though a codon with one yields no residue: %s",
                *(self.path, listed([f"{count} {letter}" for letter, count in unusual.items()])),
            )
        store = write_orfs(contigs, self.length)
        log.info(
            "%s: %d records, %d chunks, %d open reading frames",
            *(self.path, len(store.contigs), store.columns["n_chunks"].sum(), len(store)),
        )

    def open(self, folder: Path) -> None:
        """Map contigs and ORFs."""
        self.store = OrfStore(folder)
        self.warn_of_cuts()

    def plan(self) -> list[range]:
        """Cut all ORFs into packs, by the tokens of their proteins."""
        return plan_packs(self.kept_lengths, self.tokens_per_batch)

    def largest_pack(self, tokenizer: Tokenizer) -> int:
        """Tokens that a pack has at most, as far as a tokenizer can tell beforehand.

        A pack is cut by its proteins, so that its nucleotides are fewer tokens than it might hold.
        Their number is rounded up, so that inputs alike are computed in one shape.
        """
        if not self._is_of_nucleotides(tokenizer):
            return super().largest_pack(tokenizer)
        ends = np.cumsum(np.append(0.0, self.row_tokens(tokenizer)))
        largest = max((ends[pack.stop] - ends[pack.start] for pack in self.plan()), default=0.0)
        step = ceil(self.tokens_per_batch / _SHAPES)
        return min(ceil(largest / step) * step, self.tokens_per_batch)

    def row_tokens(self, tokenizer: Tokenizer) -> NDArray[np.float64]:
        """(M,) tokens of each ORF's protein, or nucleotides, as their tokenizer estimates them."""
        if not self._is_of_nucleotides(tokenizer):
            return super().row_tokens(tokenizer)
        letters = self.store.letter_counts("nucleotide")
        if self.max_length is not None:
            letters = np.minimum(letters, 3 * self.max_length)
        return np.asarray(tokenizer.estimate(letters) + tokenizer.specials, np.float64)

    def _is_of_nucleotides(self, tokenizer: Tokenizer) -> bool:
        model: Any = self._trainer().lightning_module
        return tokenizer is model.dnabert_s.tokenizer

    def tokenise(self, packs: list[NDArray[np.int64]]) -> Dataset[Any]:
        """Make the dataset of some packs' batches."""
        model: Any = self._trainer().lightning_module
        tokenizers = model.esm2.tokenizer, model.dnabert_s.tokenizer
        return OrfPacks(self.store, packs, *tokenizers, self.max_length)

    @property
    def input_counts(self) -> dict[str, int]:
        """What a reader of the results should know of the input, by name; from `setup` on."""
        return self.store.contigs.counts

    def provenance(self) -> dict[str, Any]:
        """What an output records about its input."""
        return {**super().provenance(), "chunk_length": self.length}

    def write_orfs(self, folder: Path) -> None:
        """Write both ORF files as VirNucPro does, if they are asked for.

        Args:
            folder: Where.
        """
        if not self.save_orfs:
            return
        for kind, suffix in (("nucleotide", "fa"), ("protein", "faa")):
            path = folder / f"{input_stem(self.path)}_identified_{kind}.{suffix}"
            with path.open("w", encoding="utf-8") as file:
                for start in range(0, len(self.store), _ROWS):
                    rows = np.arange(start, min(start + _ROWS, len(self.store)))
                    names, letters = self.store.ids(rows), self.store.sequences(kind, rows)
                    pairs = zip(names, letters, strict=True)
                    file.writelines(f">{name}\n{text.decode()}\n" for name, text in pairs)


def input_stem(path: Path) -> str:
    """Name of an input without compression and format: `contigs` of `contigs.fasta.gz`."""
    if path.suffix in (".gz", ".bz2", ".xz", ".zst"):
        path = path.with_suffix("")
    return path.stem
