"""From a sequence file to packed batches of its records."""

from __future__ import annotations

import logging
from abc import abstractmethod
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from virnucpro_pl.contracts import Inputs, SequenceRows, SequenceSource, Tokenizer
from virnucpro_pl.errors import UsageError, listed
from virnucpro_pl.input.alphabets import ALPHABETS, Alphabet
from virnucpro_pl.input.files import files_on_disk, input_paths, printable, shown
from virnucpro_pl.input.groups import FIRST, VARIANT, Groups, Sequences, groups_in, write_groups
from virnucpro_pl.input.packed_datamodule import PackedDataModule, check_least
from virnucpro_pl.input.packing import default_budget, plan_packs
from virnucpro_pl.input.packs import Packs
from virnucpro_pl.input.reader import read_records
from virnucpro_pl.input.records import FileRecords, RecordStore, at_most
from virnucpro_pl.input.repeated_ids import RepeatedIds

log = logging.getLogger(__name__)


class FileRows(SequenceRows, Protocol):
    """Rows that were read from a sequence file."""

    folder: Path

    @property
    def sha256(self) -> str:
        """Hash of what was read."""

    @property
    def counts(self) -> dict[str, int]:
        """What a reader of the results should know of the input, by name."""

    @property
    def files(self) -> list[FileRecords]:
        """The files that the records are of, in order."""


class SequenceFileData(PackedDataModule, SequenceSource):
    """What all data modules of a sequence file share: packs of so many tokens at most.

    Attributes:
        groups: Rows with equal sequences, from `setup` on; None if there are none, or if the model
            does not spread what it computes.
    """

    store: FileRows
    groups: Groups | None = None

    def __init__(
        self,
        path: list[str | Path] | str | Path,
        tokens_per_batch: int | None,
        num_workers: int,
        max_length: int | None,
        *,
        min_length: int,
        check_molecule: bool,
        repeated_ids: RepeatedIds,
        allow_empty: bool,
    ) -> None:
        """Configure the input, as the data modules below say; nothing is read yet."""
        super().__init__(num_workers)
        check_least("tokens_per_batch", tokens_per_batch, 1)
        check_least("max_length", max_length, 1)
        check_least("min_length", min_length, 0)
        self.paths = input_paths(path)
        self.tokens_asked = tokens_per_batch
        self.max_length = max_length
        self.min_length = min_length
        self.check_molecule = check_molecule
        self.repeated_ids = repeated_ids
        self.allow_empty = allow_empty

    @abstractmethod
    def kept_lengths(self, tokenizer: Tokenizer) -> NDArray[np.int64]:
        """(M,) letters of each row that are embedded, of the molecule that a tokenizer reads."""

    @property
    def input_files(self) -> list[Path]:
        """Files that are read."""
        return files_on_disk(self.paths)

    def read_files(self, alphabet: Alphabet, folder: Path, **options: Any) -> RecordStore:
        """Read and validate the records.

        Args:
            alphabet: Letters that are accepted.
            folder: Existing folder for the store.
            **options: More of those of `read_records`.

        Raises:
            InputError: If a file cannot be read completely and exactly.
        """
        return read_records(
            self.paths,
            alphabet,
            folder,
            allow_empty=self.allow_empty,
            check_molecule=self.check_molecule,
            repeated_ids=self.repeated_ids,
            **options,
        )

    @abstractmethod
    def compared(self, folder: Path) -> list[Sequences]:
        """What decides which rows are computed together, and what may be equal besides."""

    def group(self, folder: Path) -> None:
        """Find rows with equal sequences. Called on rank 0.

        Raises:
            UsageError: If there is no room for them.
        """
        compared = self.compared(folder)
        try:
            write_groups(folder, *compared)
        except OSError as error:
            raise UsageError(f"The input cannot be stored in {folder}: {error}") from error
        if (groups := groups_in(folder)) is not None:
            name, kind = listed([shown(path) for path in self.paths]), next(iter(self.kinds))
            counts = groups.count(FIRST), compared[0].total
            log.info("%s: %d of %d %s are distinct, and computed once", name, *counts, kind)

    def setup(self, stage: str) -> None:
        """Map the rows, and which are equal, on every rank.

        Raises:
            UsageError: On every rank, what rank 0 found in `prepare_data`.
        """
        super().setup(stage)
        try:
            self.groups = groups_in(self.store.folder) if self.model.spreads else None
        except OSError as error:
            raise UsageError(f"This rank cannot read what rank 0 has stored: {error}") from error

    def rows_of(self, pack: range) -> list[NDArray[np.int64]]:
        """The rows of each batch of a pack; several of a group that is too large for one."""
        if self.groups is None:
            return super().rows_of(pack)
        pieces = self.groups.cut(pack, self.second_tokens, self.tokens_per_batch)
        return [np.sort(self.groups.rows[piece.start : piece.stop]) for piece in pieces]

    def pack_rows(self, tokenizer: Tokenizer) -> list[range]:
        """Cut all rows into packs, by the tokens of the sequences that a tokenizer reads."""
        tokens, budget = self.row_tokens(tokenizer), self.tokens_per_batch
        if self.groups is None:
            return plan_packs(tokens, budget, specials=0)
        return self.groups.plan(tokens, self.second_tokens, budget)

    def second_tokens(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """(n,) tokens of the second sequences of some rows; 0 where rows have but one."""
        return np.zeros(len(rows))

    def wholly_done(self, done: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which of the rows (M,) that are done are so with all rows of equal sequences."""
        return done if self.groups is None else self.groups.whole(done)

    @property
    def distinct(self) -> dict[str, dict[str, float]] | None:
        """How many of each kind of sequence are distinct, and which share; after `setup`."""
        if not self.model.spreads:
            return None
        rows, counts = len(self.store), {}
        for kind, level in self.kinds.items():
            count = rows if self.groups is None else self.groups.count(level)
            counts[kind] = {"count": count, "share": round(count / max(rows, 1), 4)}
        return counts

    @property
    def kinds(self) -> dict[str, int]:
        """What is counted where it is distinct, and the level of it in `groups`."""
        return {"records": FIRST}

    @property
    def tokens_per_batch(self) -> int:
        """Tokens of a pack on the Trainer's device."""
        if self.tokens_asked is not None:
            return self.tokens_asked
        return default_budget(self.running_trainer.strategy.root_device.type)

    def row_tokens(self, tokenizer: Tokenizer) -> NDArray[np.float64]:
        """(M,) tokens of each row, special ones included, as a tokenizer estimates them."""
        kept = self.kept_lengths(tokenizer)
        return np.asarray(tokenizer.estimate(kept) + tokenizer.specials, np.float64)

    def tokens_left(self, tokenizer: Tokenizer) -> float:
        """Tokens of what no earlier run has committed, from `predict_dataloader` on."""
        left = ~self.done
        if self.groups is not None:
            level = VARIANT if tokenizer.molecule == "DNA" else FIRST
            left[self.groups.rows[self.groups.level < level]] = False
        return float(self.row_tokens(tokenizer)[left].sum())

    def warn_of_cuts(self) -> None:
        """Tell how many rows `max_length` cuts, on rank 0."""
        if self.max_length is None or not self.running_trainer.is_global_zero:
            return
        if cut := int(np.count_nonzero(self.store.lengths > self.max_length)):
            log.warning("%d %s are cut to %d letters", cut, self.store.unit, self.max_length)

    @property
    def input_counts(self) -> dict[str, int]:
        """What a reader of the results should know of the input, by name; from `setup` on."""
        return self.store.counts

    @property
    def inputs(self) -> Inputs | None:
        """Which file each record is of, where there is more than one; after `setup`."""
        files = self.store.files
        if len(files) == 1:
            return None
        numbers = np.arange(len(files), dtype=np.int32)
        names = [printable(file.file) for file in files]
        return Inputs(names, np.repeat(numbers, [file.records for file in files]))

    def provenance(self) -> dict[str, Any]:
        """What an output file records about its input."""
        return {
            "input_sha256": self.store.sha256,
            "max_length": self.max_length,
            "min_length": self.min_length or None,
        }


class SequenceDataModule(SequenceFileData):
    """Reads sequence files once and serves them as packs of consecutive records.

    Records with equal sequences are in one pack, that of the first of them, and computed once.

    A row is a record, in the order of the files and within each; of those that are kept, where
    `min_length` leaves out shorter ones. The model says which alphabet and tokenizer it needs.
    Packs go to ranks in turn.

    Attributes:
        store: The records, from `setup` on.
        done: (N,) whether an earlier run has committed a row, from `predict_dataloader` on.
        fault: On rank 0, what is wrong with the input, from `prepare_data` on.
    """

    store: RecordStore

    def __init__(
        self,
        path: list[str | Path] | str | Path,
        tokens_per_batch: int | None = None,
        num_workers: int = 1,
        max_length: int | None = None,
        min_length: int = 0,
        check_molecule: bool = True,
        repeated_ids: RepeatedIds = "error",
        allow_empty: bool = False,
    ) -> None:
        """Configure the input; nothing is read yet.

        Args:
            path: FASTA or FASTQ file, plain or gz, bz2, xz, zst compressed; for DNA also BAM, CRAM
                or SAM of unmapped reads; or a list of such files to be read in order. `-` is
                standard input.
            tokens_per_batch: Tokens of a pack, special tokens included; None for 16,384 on a GPU
                and 2,048 on a CPU. A longer record gets a pack of its own.
            num_workers: DataLoader processes of each rank; 0 tokenises in the rank itself.
            max_length: Letters of a record that are embedded; None for all.
            min_length: Letters; shorter records are left out, and counted.
            check_molecule: Whether to refuse DNA where proteins belong, and proteins where DNA
                does: records of nothing but A, C, G, T, U, N, and letters that are no bases.
            repeated_ids: What becomes of records with one id: `error`; `mates`, where the two reads
                of a pair have one, gives them /1 and /2; `number` gives the second and later _1,
                _2, ...
            allow_empty: Whether an input without records gives a file without rows.
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

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        (tokenizer,) = self.model.tokenizers
        return tokenizer

    def read(self, folder: Path) -> None:
        """Read and validate the records. Called on rank 0.

        Raises:
            InputError: If the file cannot be read completely and exactly.
        """
        alphabet = ALPHABETS[self.tokenizer.molecule]
        self.read_files(alphabet, folder, min_length=self.min_length)

    def compared(self, folder: Path) -> list[Sequences]:
        """The records, as far as they are embedded."""
        store, most = RecordStore(folder), self.max_length
        kept, letters = partial(store.lengths_of, most=most), partial(store.sequences, most=most)
        return [Sequences(len(store), kept, letters)]

    def open(self, folder: Path) -> None:
        """Map the records. Called on every rank."""
        self.store = RecordStore(folder)
        self.warn_of_cuts()

    def kept_lengths(self, tokenizer: Tokenizer) -> NDArray[np.int64]:
        """(M,) letters of each record that are embedded."""
        return at_most(self.store.lengths, self.max_length)

    def plan(self) -> list[range]:
        """Cut all records into packs."""
        return self.pack_rows(self.tokenizer)

    def batches(self, packs: list[NDArray[np.int64]]) -> Dataset[Any]:
        """Make the dataset of some packs' batches."""
        return Packs(
            self.store,
            packs,
            self.tokenizer,
            self.tokens_per_batch,
            self.max_length,
            self.groups is not None,
        )
