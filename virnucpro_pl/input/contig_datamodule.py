"""From contigs to packs of open reading frames, each with its protein and its nucleotides."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from virnucpro_pl.contracts import OrfOrigin, Tokenizer, workspace_of
from virnucpro_pl.errors import UsageError, listed
from virnucpro_pl.input.alphabets import DNA, PRINTABLE
from virnucpro_pl.input.files import input_stem, shown
from virnucpro_pl.input.orf_store import Kind, OrfStore, write_orfs
from virnucpro_pl.input.orfs import POOLED_RESIDUES, count_unusual_letters
from virnucpro_pl.input.packed_batch import PackedBatch, pack
from virnucpro_pl.input.packing import plan_packs
from virnucpro_pl.input.records import SHORTER
from virnucpro_pl.input.repeated_ids import RepeatedIds
from virnucpro_pl.input.sequence_datamodule import SequenceFileData

log = logging.getLogger(__name__)

_ROWS = 65_536
"""ORFs that are written at a time."""
_SHAPES = 32
"""Steps up to a full pack in which the size of nucleotide packs is chosen."""


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


@dataclass(eq=False)
class OrfPacks(Dataset[list[OrfBatch]]):
    """Packs of ORFs, tokenised for both models when asked for."""

    store: OrfStore
    packs: list[NDArray[np.int64]]
    """Rows of each pack."""
    proteins: Tokenizer
    nucleotides: Tokenizer
    max_length: int | None = None
    """Residues, and codons, of an ORF that are kept; None for all."""

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


class ContigDataModule(SequenceFileData):
    """Reads contigs or reads, and serves their ORFs as packs for both models.

    Attributes:
        store: The ORFs, from `setup` on; the contigs are in `store.contigs`.
    """

    store: OrfStore

    def __init__(
        self,
        path: list[str | Path] | str | Path,
        length: int = 500,
        save_orfs: bool = False,
        tokens_per_batch: int | None = None,
        num_workers: int = 1,
        max_length: int | None = None,
        min_length: int = 0,
        letters: Literal["iupac", "original"] = "iupac",
        check_molecule: bool = True,
        repeated_ids: RepeatedIds = "error",
        allow_empty: bool = False,
    ) -> None:
        """Configure the input; nothing is read yet.

        Args:
            path: FASTA or FASTQ file of DNA, plain or gz, bz2, xz, zst compressed; or BAM, CRAM or
                SAM of unmapped reads; or a list of such files to be read in order. `-` is standard
                input.
            length: Bases of a chunk: 500, or 300 with the classifier that was trained on 300.
            save_orfs: Whether to write the ORFs to the output folder, as
                `<input>_identified_nucleotide.fa` and `<input>_identified_protein.faa`, named by
                the first input.
            tokens_per_batch: Protein tokens of a pack, special tokens included; None for 16,384 on
                a GPU and 2,048 on a CPU.
            num_workers: DataLoader processes of each rank; 0 tokenises in the rank itself.
            max_length: Residues of an ORF, and three times as many bases, that are embedded; None
                for all.
            min_length: Bases; shorter contigs are not searched for ORFs, and stay in the tables
                with the status `skipped`.
            letters: `iupac` takes A, C, G, T, N and the IUPAC codes, and reads U as T. `original`
                takes any printable character but `>` as it is, as VirNucPro does: a codon with one
                that is not A, C, G or T yields no residue.
            check_molecule: Whether to refuse proteins: input of which more than a tenth of the
                letters are no bases.
            repeated_ids: What becomes of records with one id: `error`; `mates`, where the two reads
                of a pair have one, gives them /1 and /2; `number` gives the second and later _1,
                _2, ...
            allow_empty: Whether an input without records gives tables without rows.
        """
        super().__init__(
            path,
            tokens_per_batch,
            num_workers,
            max_length,
            min_length=min_length,
            check_molecule=check_molecule,
            repeated_ids=repeated_ids,
            allow_empty=allow_empty,
        )
        if length < 3:
            raise UsageError(
                f"--data.length must be at least 3, a codon, not {length}: VirNucPro's classifiers "
                "take chunks of 500 or 300 bases"
            )
        self.length = length
        self.save_orfs = save_orfs
        self.letters = letters

    def read(self, folder: Path) -> None:
        """Read the contigs and find their ORFs. Called on rank 0.

        Raises:
            InputError: If the file cannot be read completely and exactly.
            UsageError: If nobody will write the ORFs that shall be saved.
        """
        if self.save_orfs and workspace_of(self.running_trainer) is None:
            raise UsageError("save_orfs writes to the folder of a TableWriter, and there is none")
        alphabet = DNA if self.letters == "iupac" else PRINTABLE
        contigs = self.read_files(alphabet, folder, allow_empty_records=True)
        name = listed([shown(path) for path in self.paths])
        unusual = count_unusual_letters(contigs.residues)
        if unusual:
            letters = listed([f"{count} {letter}" for letter, count in unusual.items()])
            kept = "kept as they are, though a codon with one yields no residue"
            log.warning("%s: %s: %s", name, kept, letters)
        store = write_orfs(contigs, self.length, self.min_length)
        if skipped := store.counts.get(SHORTER):
            shortest = self.min_length
            log.warning("%s: %d records of less than %d bases are skipped", name, skipped, shortest)
        counts = len(contigs), store.columns["n_chunks"].sum(), len(store)
        log.info("%s: %d records, %d chunks, %d open reading frames", name, *counts)

    def open(self, folder: Path) -> None:
        """Map contigs and ORFs. Called on every rank."""
        self.store = OrfStore(folder)
        self.warn_of_cuts()

    def kept_lengths(self, tokenizer: Tokenizer) -> NDArray[np.int64]:
        """(M,) residues, or bases, of each ORF that are embedded."""
        is_dna = tokenizer.molecule == "DNA"
        lengths = self.store.letter_counts("nucleotide" if is_dna else "protein")
        if self.max_length is None:
            return lengths
        return np.minimum(lengths, 3 * self.max_length if is_dna else self.max_length)

    def plan(self) -> list[range]:
        """Cut all ORFs into packs, by the tokens of their proteins."""
        proteins, _ = self.tokenizers
        return plan_packs(self.row_tokens(proteins), self.tokens_per_batch, specials=0)

    def largest_pack(self, tokenizer: Tokenizer) -> int:
        """Tokens that a pack has at most, as far as a tokenizer can tell beforehand.

        A pack is cut by its proteins, so that its nucleotides are fewer tokens than it might hold.
        Their number is rounded up, so that inputs alike are computed in one shape.
        """
        if tokenizer.molecule == "protein":
            return super().largest_pack(tokenizer)
        ends = np.cumsum(np.append(0.0, self.row_tokens(tokenizer)))
        largest = max((ends[pack.stop] - ends[pack.start] for pack in self.plan()), default=0.0)
        step = ceil(self.tokens_per_batch / _SHAPES)
        return min(ceil(largest / step) * step, self.tokens_per_batch)

    @property
    def tokenizers(self) -> tuple[Tokenizer, Tokenizer]:
        """The model's tokenizers of proteins and of nucleotides."""
        by_molecule = {tokenizer.molecule: tokenizer for tokenizer in self.model.tokenizers}
        return by_molecule["protein"], by_molecule["DNA"]

    def batches(self, packs: list[NDArray[np.int64]]) -> Dataset[Any]:
        """Make the dataset of some packs' batches."""
        return OrfPacks(self.store, packs, *self.tokenizers, self.max_length)

    @property
    def origin(self) -> OrfOrigin:
        """Which contig, which chunk of it and which frame each ORF is of."""
        store = self.store
        return OrfOrigin(
            contigs=store.contigs,
            places=store.places,
            n_chunks=store.columns["n_chunks"],
            record=store.columns["record"],
            chunk=store.columns["chunk"],
            frame=store.columns["frame"],
            letters={
                "DNA": store.letter_counts("nucleotide"),
                "protein": store.letter_counts("protein"),
            },
            min_length=store.min_length,
        )

    @property
    def chunk_length(self) -> int:
        """Bases of a chunk."""
        return self.length

    def provenance(self) -> dict[str, Any]:
        """What an output records about its input."""
        return {**super().provenance(), "chunk_length": self.chunk_length}

    def write_beside(self, folder: Path) -> None:
        """Write both ORF files as VirNucPro does, if they are asked for.

        Args:
            folder: Where.
        """
        if not self.save_orfs:
            return
        files: dict[Kind, str] = {"nucleotide": "fa", "protein": "faa"}
        for kind, suffix in files.items():
            path = folder / f"{input_stem(self.paths[0])}_identified_{kind}.{suffix}"
            with path.open("w", encoding="utf-8") as file:
                for start in range(0, len(self.store), _ROWS):
                    rows = np.arange(start, min(start + _ROWS, len(self.store)))
                    names, letters = self.store.ids(rows), self.store.sequences(kind, rows)
                    pairs = zip(names, letters, strict=True)
                    file.writelines(f">{name}\n{text.decode()}\n" for name, text in pairs)
