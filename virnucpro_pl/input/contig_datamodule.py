"""From contigs to packs of open reading frames, each with its protein and its nucleotides."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from virnucpro_pl.contracts import OrfOrigin, Tokenizer, workspace_of
from virnucpro_pl.errors import UsageError, listed
from virnucpro_pl.input.alphabets import DNA, PRINTABLE
from virnucpro_pl.input.files import input_stem, shown
from virnucpro_pl.input.groups import FIRST, VARIANT, Sequences
from virnucpro_pl.input.orf_store import Kind, OrfStore, write_orfs
from virnucpro_pl.input.orfs import count_unusual_letters
from virnucpro_pl.input.packed_datamodule import check_least
from virnucpro_pl.input.packs import OrfPacks, bases_of
from virnucpro_pl.input.records import SHORTER, at_most
from virnucpro_pl.input.repeated_ids import RepeatedIds
from virnucpro_pl.input.sequence_datamodule import SequenceFileData

log = logging.getLogger(__name__)

_ROWS = 65_536
"""ORFs that are written at a time."""


class ContigDataModule(SequenceFileData):
    """Reads contigs or reads, and serves their ORFs as packs for both models.

    ORFs with equal proteins are in one pack, in which each protein and each string of nucleotides
    is computed once.

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
        max_chunks: int | None = None,
    ) -> None:
        """Configure the input; nothing is read yet.

        Args:
            path: FASTA or FASTQ file of DNA, plain or gz, bz2, xz, zst compressed; or BAM, CRAM or
                SAM of unmapped reads; or a list of such files to be read in order. `-` is standard
                input.
            length: Bases of a chunk: 500, or 300 with the classifier that was trained on 300.
            save_orfs: Whether to write the ORFs to the output folder, as
                `<input>_identified_nucleotide.fa` and `<input>_identified_protein.faa`, named by
                the first input; with max_chunks those of the chunks that are computed.
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
            max_chunks: Chunks of a contig that are computed at most, evenly spaced, the first and
                the last among them: a contig with more is called by that sample, and left out of
                the regions. None for all.
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
        check_least("max_chunks", max_chunks, 1)
        self.length = length
        self.save_orfs = save_orfs
        self.letters = letters
        self.max_chunks = max_chunks

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
        store = write_orfs(contigs, self.length, self.min_length, self.max_chunks)
        if skipped := store.counts.get(SHORTER):
            shortest = self.min_length
            log.warning("%s: %d records of less than %d bases are skipped", name, skipped, shortest)
        n_chunks, n_sampled = store.columns["n_chunks"].sum(), store.n_sampled.sum()
        of_these = f", {n_sampled} of them sampled" if n_sampled < n_chunks else ""
        counts = len(contigs), n_chunks, of_these, len(store)
        log.info("%s: %d records, %d chunks%s, %d open reading frames", name, *counts)

    def compared(self, folder: Path) -> list[Sequences]:
        """Proteins and nucleotides, as far as they are embedded."""
        store, most = OrfStore(folder), self.max_length
        kinds: dict[Kind, int | None] = {"protein": most, "nucleotide": bases_of(most)}
        return [
            Sequences(
                len(store),
                partial(store.lengths_of, kind, most=most),
                partial(store.sequences, kind, most=most),
            )
            for kind, most in kinds.items()
        ]

    def open(self, folder: Path) -> None:
        """Map contigs and ORFs. Called on every rank."""
        self.store = OrfStore(folder)
        self.warn_of_cuts()

    def kept_lengths(self, tokenizer: Tokenizer) -> NDArray[np.int64]:
        """(M,) residues, or bases, of each ORF that are embedded."""
        if tokenizer.molecule == "DNA":
            return at_most(self.store.letter_counts("nucleotide"), bases_of(self.max_length))
        return at_most(self.store.letter_counts("protein"), self.max_length)

    def plan(self) -> list[range]:
        """Cut all ORFs into packs, by the tokens of their proteins."""
        proteins, _ = self.tokenizers
        return self.pack_rows(proteins)

    def second_tokens(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """(n,) tokens of the nucleotides of some ORFs, as their tokenizer estimates them."""
        _, nucleotides = self.tokenizers
        kept = self.store.lengths_of("nucleotide", rows, bases_of(self.max_length))
        return np.asarray(nucleotides.estimate(kept) + nucleotides.specials, np.float64)

    @property
    def kinds(self) -> dict[str, int]:
        """Proteins and, with their nucleotides, ORFs."""
        return {"proteins": FIRST, "orfs": VARIANT}

    @property
    def tokenizers(self) -> tuple[Tokenizer, Tokenizer]:
        """The model's tokenizers of proteins and of nucleotides."""
        by_molecule = {tokenizer.molecule: tokenizer for tokenizer in self.model.tokenizers}
        return by_molecule["protein"], by_molecule["DNA"]

    def batches(self, packs: list[NDArray[np.int64]]) -> Dataset[Any]:
        """Make the dataset of some packs' batches."""
        options = self.max_length, self.groups is not None
        return OrfPacks(self.store, packs, *self.tokenizers, *options)

    @property
    def origin(self) -> OrfOrigin:
        """Which contig, which chunk of it and which frame each ORF is of."""
        store = self.store
        return OrfOrigin(
            contigs=store.contigs,
            places=store.places,
            n_chunks=store.columns["n_chunks"],
            n_sampled=store.n_sampled,
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
        cut = {"chunk_length": self.chunk_length, "max_chunks": self.max_chunks}
        return {**super().provenance(), **cut}

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
