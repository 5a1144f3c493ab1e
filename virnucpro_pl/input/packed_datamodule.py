"""What data modules of a prediction share: rows planned into packs, each on exactly one rank."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from abc import abstractmethod
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch.utils.data import Dataset

from virnucpro_pl.contracts import RowModel, RowSource, model_of, workspace_of
from virnucpro_pl.errors import UsageError
from virnucpro_pl.input.loader import PackLoader


def check_least(option: str, value: int | None, least: int) -> None:
    """Refuse an option of the data that is too small.

    Raises:
        UsageError: If it is.
    """
    if value is not None and value < least:
        raise UsageError(f"--data.{option} must be at least {least}, not {value}")


class PackedDataModule(LightningDataModule, RowSource):
    """Reads an input once, on rank 0, and serves it as packs of consecutive rows.

    A kind of it says what it reads, what a row is, and how rows are packed. Packs go to ranks in
    turn.

    Attributes:
        done: (M,) whether an earlier run has committed a row, from `predict_dataloader` on.
    """

    done: NDArray[np.bool_]

    def __init__(self, num_workers: int) -> None:
        """Configure the loader; nothing is read yet.

        Args:
            num_workers: DataLoader processes of each rank; 0 makes batches in the rank itself.
        """
        super().__init__()
        check_least("num_workers", num_workers, 0)
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.prepare_data_per_node = False
        self.num_workers = num_workers
        self.fault: UsageError | None = None
        self._folder: Path | None = None
        self._scratch: Path | None = None

    @property
    @abstractmethod
    def input_files(self) -> list[Path]:
        """Files that are read."""

    @abstractmethod
    def read(self, folder: Path) -> None:
        """Read and validate the input into a folder. Called on rank 0.

        Raises:
            InputError: If it cannot be read completely and exactly.
        """

    def group(self, folder: Path) -> None:
        """Find what needs to be computed but once for several rows. Called on rank 0.

        Args:
            folder: Where `read` has put the input.

        Raises:
            UsageError: If there is no room for it.
        """

    @abstractmethod
    def open(self, folder: Path) -> None:
        """Map what `read` wrote, as `store`. Called on every rank."""

    @abstractmethod
    def plan(self) -> list[range]:
        """Cut all rows into packs."""

    def rows_of(self, pack: range) -> list[NDArray[np.int64]]:
        """The rows of each batch of a pack, which is one batch as a rule."""
        return [np.arange(pack.start, pack.stop)]

    @abstractmethod
    def batches(self, packs: list[NDArray[np.int64]]) -> Dataset[Any]:
        """Make the dataset whose items are the batches of each of some packs of rows."""

    def prepare_data(self) -> None:
        """Read and validate the input on rank 0; a fault is kept for all to raise in setup."""
        self.fault = None
        try:
            model = self.model
            folder = self._claim_folder(model)
            self.read(folder)
            if model.spreads:
                self.group(folder)
            self._folder = folder
        except UsageError as error:
            self.fault = error
        except OSError as error:
            self.fault = UsageError(f"What is read of the input cannot be kept: {error}")

    def setup(self, stage: str) -> None:
        """Map the rows on every rank.

        Raises:
            UsageError: On every rank, what rank 0 found in `prepare_data`; or if this rank does not
                find what that has read.
        """
        outcome = self.running_trainer.strategy.broadcast(self.fault or self._folder)
        if isinstance(outcome, UsageError):
            raise outcome
        try:
            self.open(outcome)
        except OSError as error:
            raise UsageError(
                f"{outcome}, where rank 0 has put what it has read, cannot be read: {error}. The "
                "folder of --writer.path must be one that all ranks see"
            ) from error
        warnings.filterwarnings("ignore", "Couldn't infer the batch indices")  # rows travel along

    def predict_dataloader(self) -> PackLoader:
        """Plan the packs, leave out the rows that are committed, and take this rank's share.

        All rows are planned, not only those that lack: with the same budget a continued run
        computes the very packs that the interrupted one would have. All batches of a pack are of
        one rank.
        """
        trainer, workspace = self.running_trainer, workspace_of(self.running_trainer)
        packs = [self.rows_of(pack) for pack in self.plan()]
        self.done = np.zeros(len(self.store), np.bool_)
        if workspace is not None:
            self.done = workspace.finished_rows(len(self.store), trainer)
            packs = [left for rows in packs if (left := self._left(rows))]
        mine = chain.from_iterable(packs[trainer.global_rank :: trainer.world_size])
        return PackLoader(self.batches(list(mine)), self.num_workers, trainer.strategy.root_device)

    def _left(self, pack: list[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
        """Rows of each batch of a pack that are not committed, if any are left."""
        return [left for rows in pack if len(left := rows[~self.done[rows]])]

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Leave a batch as the loader made it: tokens on the device, rows and ids on the host."""
        return batch

    def teardown(self, stage: str) -> None:
        """Remove what was read where no writer owns its folder."""
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None

    def on_exception(self, exception: BaseException) -> None:
        """Clean up as after a run."""
        self.teardown("predict")

    @property
    def running_trainer(self) -> Any:
        """The Trainer.

        Raises:
            UsageError: If there is none.
        """
        if self.trainer is None:
            raise UsageError(f"{type(self).__name__} works inside Trainer.predict only")
        return self.trainer

    @property
    def model(self) -> RowModel:
        """The model that the rows are for.

        Raises:
            UsageError: If it needs other data.
        """
        model = model_of(self.running_trainer)
        if model is None:
            name = type(self.running_trainer.lightning_module).__name__
            raise UsageError(f"{type(self).__name__} needs a model of this package, not a {name}")
        model.check_data(self)
        return model

    def _claim_folder(self, model: RowModel) -> Path:
        workspace = workspace_of(self.running_trainer)
        if workspace is not None:
            return workspace.claim([*self.input_files, *model.input_files])
        self._scratch = Path(tempfile.mkdtemp(prefix="virnucpro-pl-"))
        return self._scratch
