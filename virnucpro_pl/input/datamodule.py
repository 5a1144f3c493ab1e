"""From a sequence file to packed batches, each row on exactly one rank."""

from __future__ import annotations

import logging
import shutil
import signal
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from virnucpro_pl.errors import UsageError
from virnucpro_pl.input.packing import plan_packs
from virnucpro_pl.input.reader import read_records
from virnucpro_pl.input.records import RecordStore
from virnucpro_pl.input.tokens import PackedBatch, Tokenizer, lay

log = logging.getLogger(__name__)

_GPU_TOKENS = 16_384
_CPU_TOKENS = 2_048
"""Tokens of a pack where nobody says how many. A CPU is about as fast with few as with many, and
commits and tells of its progress that much more often."""


@runtime_checkable
class Workspace(Protocol):
    """An output callback that owns a folder shared by all ranks, and knows which rows are done."""

    def claim(self, inputs: Sequence[Path]) -> Path:
        """Refuse an output that is an input or cannot be written, else make the folder."""

    def finished_rows(self, count: int, trainer: Any) -> NDArray[np.bool_]:
        """Flags (count,) of the rows that an earlier run has committed; called on every rank."""


@runtime_checkable
class ReadsFiles(Protocol):
    """A module that can tell which files it reads, so that none of them is written."""

    @property
    def input_files(self) -> list[Path]:
        """Files and folders that it reads."""


class Packs(Dataset[list[PackedBatch]]):
    """Packs of rows, tokenised when asked for, in a DataLoader worker or in the process itself."""

    def __init__(
        self,
        store: RecordStore,
        packs: list[NDArray[np.int64]],
        tokenizer: Tokenizer,
        budget: int,
        max_length: int | None,
    ) -> None:
        """Keep what a worker needs.

        Args:
            store: The records.
            packs: Rows of each planned pack.
            tokenizer: The model's.
            budget: Tokens that a pack may hold.
            max_length: Letters of a sequence that are kept; None for all.
        """
        self.store = store
        self.packs = packs
        self.tokenizer = tokenizer
        self.budget = budget
        self.max_length = max_length

    def __len__(self) -> int:
        """Count the planned packs."""
        return len(self.packs)

    def __getitem__(self, index: int) -> list[PackedBatch]:
        """Tokenise a planned pack; where the estimate of its tokens was too low, cut it again."""
        rows = self.packs[index]
        ids = self.store.ids(rows)
        sequences = [s[: self.max_length] for s in self.store.sequences(rows)]
        tokens, counts = self.tokenizer.encode(sequences)
        lengths = np.fromiter(map(len, sequences), np.int32, len(sequences))
        starts = np.concatenate(([0], np.cumsum(counts)))
        return [
            lay(
                rows[part],
                ids[part],
                lengths[part],
                tokens[starts[part.start] : starts[part.stop]],
                counts[part],
                self.tokenizer.margin,
            )
            for part in (
                slice(cut.start, cut.stop) for cut in plan_packs(counts, self.budget, specials=0)
            )
        ]


class PackLoader:
    """Iterates over one rank's batches, on its device.

    No DataLoader for Lightning to rebuild, and no length: Lightning would stop at a length that was
    planned too low, and would shard again by rules that depend on the class of the sampler.
    """

    def __init__(self, packs: Dataset[Any], workers: int, device: torch.device) -> None:
        """Keep what the DataLoader needs.

        Args:
            packs: The rank's packs.
            workers: DataLoader processes.
            device: Where the batches go; on a GPU each has the one behind it with it.
        """
        self.packs = packs
        self.workers = workers
        self.device = device

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches in order."""
        on_gpu = self.device.type == "cuda"
        loader = DataLoader(
            self.packs,
            batch_size=None,
            num_workers=min(self.workers, len(self.packs)),  # type: ignore[arg-type]
            collate_fn=_unchanged,
            pin_memory=on_gpu,
            worker_init_fn=_leave_signals_to_the_rank,
        )
        batches = (batch.to(self.device) for batch in chain.from_iterable(loader))
        return with_following(batches) if on_gpu else batches


def with_following(batches: Iterator[Any]) -> Iterator[Any]:
    """Give each batch the one behind it, so that the device never waits for the host."""
    batch = next(batches, None)
    while batch is not None:
        following = next(batches, None)
        yield batch._replace(following=following)
        batch = following


def _unchanged(batches: list[PackedBatch]) -> list[PackedBatch]:
    return batches


def _leave_signals_to_the_rank(worker: int) -> None:
    """A signal to the process group must not kill workers while the rank finishes its pack."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class SequenceDataModule(LightningDataModule):
    """Reads a FASTA or FASTQ file once and serves it as packs of consecutive records.

    The model says which alphabet and tokenizer it needs. Packs go to ranks in turn.

    Attributes:
        store: The records, from `setup` on.
        pack_count: Packs of the whole input, over all ranks, from `predict_dataloader` on.
        done: (N,) whether an earlier run has committed a row, from `predict_dataloader` on.
        fault: On rank 0, what is wrong with the input, from `prepare_data` on.
    """

    store: RecordStore
    done: NDArray[np.bool_]

    def __init__(
        self,
        path: str | Path,
        tokens_per_batch: int | None = None,
        num_workers: int = 1,
        max_length: int | None = None,
        check_molecule: bool = True,
    ) -> None:
        """Configure the input; nothing is read yet.

        Args:
            path: FASTA or FASTQ file, plain or gz, bz2, xz, zst compressed.
            tokens_per_batch: Tokens of a pack, special tokens included; None for 16,384 on a GPU
                and 2,048 on a CPU. A longer record gets a pack of its own.
            num_workers: DataLoader processes of each rank; 0 tokenises in the rank itself.
            max_length: Letters of a record that are embedded; None for all.
            check_molecule: Whether to refuse DNA where proteins belong, and proteins where DNA
                does: records of nothing but A, C, G, T, U, N, and letters that are no bases.
        """
        super().__init__()
        for name, value, least in (
            ("tokens_per_batch", tokens_per_batch, 1),
            ("num_workers", num_workers, 0),
            ("max_length", max_length, 1),
        ):
            if value is not None and value < least:
                raise UsageError(f"--data.{name} must be at least {least}, not {value}")
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.prepare_data_per_node = False
        self.path = Path(path)
        self.tokens_asked = tokens_per_batch
        self.num_workers = num_workers
        self.max_length = max_length
        self.check_molecule = check_molecule
        self.fault: UsageError | None = None
        self.pack_count = 0
        self._folder: Path | None = None
        self._scratch: Path | None = None

    def prepare_data(self) -> None:
        """Read and validate the input on rank 0; a fault is kept for all to raise in setup."""
        self.fault = None
        try:
            folder = self._workspace_folder()
            self.read(folder)
            self._folder = folder
        except UsageError as error:
            self.fault = error

    def setup(self, stage: str) -> None:
        """Map the records on every rank.

        Raises:
            UsageError: On every rank, what rank 0 found in `prepare_data`.
        """
        outcome = self._trainer().strategy.broadcast(self.fault or self._folder)
        if isinstance(outcome, UsageError):
            raise outcome
        self.open(outcome)
        warnings.filterwarnings("ignore", "Couldn't infer the batch indices")  # rows travel along

    def predict_dataloader(self) -> PackLoader:
        """Plan the packs, leave out the rows that are committed, and take this rank's share.

        All rows are planned, not only those that lack: with the same budget a continued run
        computes the very packs that the interrupted one would have.
        """
        trainer, workspace = self._trainer(), self._workspace()
        plan = self.plan()
        self.pack_count = len(plan)
        packs = [np.arange(pack.start, pack.stop) for pack in plan]
        self.done = np.zeros(len(self.store), np.bool_)
        if workspace is not None:
            self.done = workspace.finished_rows(len(self.store), trainer)
            packs = [left for rows in packs if len(left := rows[~self.done[rows]])]
        mine = self.tokenise(packs[trainer.global_rank :: trainer.world_size])
        return PackLoader(mine, self.num_workers, trainer.strategy.root_device)

    @property
    def input_files(self) -> list[Path]:
        """Files that are read."""
        return [self.path]

    def read(self, folder: Path) -> None:
        """Read and validate the input into a folder. Called on rank 0.

        Raises:
            InputError: If it cannot be read completely and exactly.
        """
        alphabet = self.tokenizer.alphabet
        read_records(self.path, alphabet, folder, check_molecule=self.check_molecule)

    def open(self, folder: Path) -> None:
        """Map what `read` wrote. Called on every rank."""
        self.store = RecordStore(folder)
        self.warn_of_cuts()

    def warn_of_cuts(self) -> None:
        """Tell how many rows `max_length` cuts, on rank 0."""
        cut = int(np.count_nonzero(self.kept_lengths < self.store.lengths))
        if cut and self._trainer().is_global_zero:
            log.warning("%d %s are cut to %d letters", cut, self.store.unit, self.max_length)

    @property
    def tokens_per_batch(self) -> int:
        """Tokens of a pack on the Trainer's device."""
        if self.tokens_asked is not None:
            return self.tokens_asked
        on_gpu = self._trainer().strategy.root_device.type == "cuda"
        return _GPU_TOKENS if on_gpu else _CPU_TOKENS

    @property
    def kept_lengths(self) -> NDArray[np.int64]:
        """(N,) letters of each row that are embedded."""
        lengths = self.store.lengths
        return lengths if self.max_length is None else np.minimum(lengths, self.max_length)

    def row_tokens(self, tokenizer: Tokenizer) -> NDArray[np.float64]:
        """(N,) tokens of each row, special ones included, as a tokenizer estimates them."""
        return np.asarray(tokenizer.estimate(self.kept_lengths) + tokenizer.specials, np.float64)

    def tokens_left(self, tokenizer: Tokenizer) -> float:
        """Tokens of the rows that no earlier run has committed, from `predict_dataloader` on."""
        return float(self.row_tokens(tokenizer)[~self.done].sum())

    def plan(self) -> list[range]:
        """Cut all rows into packs."""
        return plan_packs(self.row_tokens(self.tokenizer), self.tokens_per_batch, specials=0)

    def largest_pack(self, tokenizer: Tokenizer) -> int:
        """Tokens that a pack has at most; on a GPU, smaller ones are filled up to so many."""
        return self.tokens_per_batch

    def tokenise(self, packs: list[NDArray[np.int64]]) -> Dataset[Any]:
        """Make the dataset of some packs' batches."""
        return Packs(self.store, packs, self.tokenizer, self.tokens_per_batch, self.max_length)

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Leave a batch as the loader made it: tokens on the device, rows and ids on the host."""
        return batch

    def teardown(self, stage: str) -> None:
        """Remove the records where no writer owns their folder."""
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None

    def on_exception(self, exception: BaseException) -> None:
        """Clean up as after a run."""
        self.teardown("predict")

    @property
    def input_counts(self) -> dict[str, int]:
        """What a reader of the results should know of the input, by name; from `setup` on."""
        return self.store.counts

    def provenance(self) -> dict[str, Any]:
        """What an output file records about its input."""
        return {"input_sha256": self.store.sha256, "max_length": self.max_length}

    def _trainer(self) -> Any:
        if self.trainer is None:
            raise UsageError("SequenceDataModule works inside Trainer.predict only")
        return self.trainer

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        tokenizer: Tokenizer = self._trainer().lightning_module.tokenizer
        return tokenizer

    def _workspace(self) -> Workspace | None:
        return next((c for c in self._trainer().callbacks if isinstance(c, Workspace)), None)

    def _workspace_folder(self) -> Path:
        workspace = self._workspace()
        if workspace is not None:
            model = self._trainer().lightning_module
            weights = model.input_files if isinstance(model, ReadsFiles) else []
            return workspace.claim([*self.input_files, *weights])
        self._scratch = Path(tempfile.mkdtemp(prefix="virnucpro-pl-"))
        return self._scratch
