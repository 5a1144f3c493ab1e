"""From two embedding files of the same ORFs to blocks of features, joined by id."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from virnucpro_pl.errors import InputError, listed
from virnucpro_pl.sequences.datamodule import SequenceDataModule
from virnucpro_pl.sequences.packing import plan_packs

__all__ = ["EmbeddingPairDataModule", "PairBatch"]

log = logging.getLogger(__name__)

BLOCK = 256
"""Rows that are classified together, as in VirNucPro: the last float32 digit depends on it."""
_FORMAT = "virnucpro-pl embeddings"
_HASH_BYTES = 64 << 20


class PairBatch(NamedTuple):
    """Consecutive rows of the DNABERT-S file with their ESM-2 partners."""

    rows: Tensor
    """(N,) int64 row of each ORF in the DNABERT-S file; on the host."""
    ids: tuple[str, ...]
    """(N,) id of each ORF."""
    features: Tensor
    """(N, F) fp32: DNABERT-S, then ESM-2."""

    @property
    def tokens(self) -> Tensor:
        """(N,) what the throughput counts: one a row."""
        return self.rows


class EmbeddingFile:
    """An embedding file, opened when it is first read in a process; pickled by its path alone."""

    def __init__(self, path: Path) -> None:
        """Keep the path.

        Args:
            path: The file.
        """
        self.path = path
        self._file: h5py.File | None = None

    def __reduce__(self) -> tuple[type[EmbeddingFile], tuple[Path]]:
        """Send the path to a worker, not an open file."""
        return EmbeddingFile, (self.path,)

    @property
    def file(self) -> h5py.File:
        """The open file.

        Raises:
            InputError: If it is missing, damaged, unfinished, or no embedding file.
        """
        if self._file is None:
            self._file = self._open()
        return self._file

    def _open(self) -> h5py.File:
        try:
            file = h5py.File(self.path, "r")
        except OSError as error:
            raise InputError(f"{self.path} cannot be read as HDF5: {error}") from error
        attributes = file.attrs
        if attributes.get("format") != _FORMAT or attributes.get("format_version") != 1:
            raise InputError(
                f"{self.path} is no embedding file of this version: format is "
                f"{attributes.get('format')!r}, format_version {attributes.get('format_version')!r}"
            )
        if not attributes.get("complete"):
            raise InputError(f"{self.path} was never completed")
        missing = [name for name in ("embeddings", "sequence_ids") if name not in file]
        if missing:
            raise InputError(f"{self.path} lacks {listed(missing)}")
        if file["embeddings"].ndim != 2 or len(file["embeddings"]) != len(file["sequence_ids"]):
            raise InputError(f"{self.path} does not have one vector for each id")
        return file

    def ids(self) -> NDArray[np.object_]:
        """All ids, as bytes."""
        ids: NDArray[np.object_] = self.file["sequence_ids"][()]
        return ids

    def rows(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Vectors of some rows, in the order asked for."""
        ordered, back = np.unique(rows, return_inverse=True)  # HDF5 reads in ascending order only
        vectors: NDArray[np.float32] = self.file["embeddings"][ordered].astype(np.float32)
        return vectors[back]

    def sha256(self) -> str:
        """Hash of the file's bytes."""
        with self.path.open("rb", buffering=0) as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()


class Pairs(Dataset[list[PairBatch]]):
    """Blocks of rows, read from both files when asked for."""

    def __init__(self, store: PairStore, packs: list[NDArray[np.int64]]) -> None:
        """Keep what a worker needs.

        Args:
            store: Both files.
            packs: Rows of each block.
        """
        self.store = store
        self.packs = packs

    def __len__(self) -> int:
        """Count the blocks."""
        return len(self.packs)

    def __getitem__(self, index: int) -> list[PairBatch]:
        """Read one block."""
        rows = self.packs[index]
        features = np.hstack((
            self.store.dnabert_s.rows(rows),
            self.store.esm2.rows(self.store.partner[rows]),
        ))  # fmt: skip
        ids = tuple(self.store.ids(rows))
        return [PairBatch(torch.from_numpy(rows), ids, torch.from_numpy(features))]


class PairStore:
    """Two embedding files, joined by id in the order of the DNABERT-S file."""

    def __init__(self, dnabert_s: Path, esm2: Path) -> None:
        """Join them.

        Args:
            dnabert_s: DNABERT-S embeddings.
            esm2: ESM-2 embeddings of the same ORFs, in any order.

        Raises:
            InputError: If a file cannot be used, names an id twice, or lacks an id of the other.
        """
        self.dnabert_s = EmbeddingFile(dnabert_s)
        self.esm2 = EmbeddingFile(esm2)
        for kind, file in (("DNABERT-S", self.dnabert_s), ("esm2", self.esm2)):
            model = str(file.file.attrs.get("model", kind))
            if not model.lower().startswith(kind.lower()):
                raise InputError(f"{file.path} holds embeddings of {model}, not of {kind}")
        self._ids = self.dnabert_s.ids()
        self.partner = _join(dnabert_s, self._ids, esm2, self.esm2.ids())
        self.width = sum(f.file["embeddings"].shape[1] for f in (self.dnabert_s, self.esm2))

    def __len__(self) -> int:
        """Count the ORFs."""
        return len(self._ids)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(M,) one for each ORF: what a block is bounded by."""
        return np.ones(len(self), np.int64)

    def ids(self, rows: NDArray[np.int64]) -> list[str]:
        """Ids of some ORFs."""
        return [identifier.decode() for identifier in self._ids[rows].tolist()]


def _join(
    first_path: Path, first: NDArray[np.object_], second_path: Path, second: NDArray[np.object_]
) -> NDArray[np.int64]:
    """For each row of the first file the row of the second that has its id."""
    orders = []
    for path, ids in ((first_path, first), (second_path, second)):
        order = np.argsort(ids, kind="stable")
        twice = np.flatnonzero(ids[order][1:] == ids[order][:-1])
        if len(twice):
            names = [ids[order[i]].decode() for i in twice[:1000]]
            raise InputError(f"{path} has {len(twice)} id(s) more than once: {listed(names)}")
        orders.append(order)
    for path, ids, other in ((first_path, second, first), (second_path, first, second)):
        lacking = np.setdiff1d(ids, other, assume_unique=True)
        if len(lacking):
            names = [identifier.decode() for identifier in lacking[:1000].tolist()]
            raise InputError(
                f"{path} lacks {len(lacking)} id(s) of the other file: {listed(names)}"
            )
    partner = np.empty(len(first), np.int64)
    partner[orders[0]] = orders[1]
    return partner


class EmbeddingPairDataModule(SequenceDataModule):
    """Serves two embedding files of the same ORFs as blocks of 256 consecutive rows.

    Attributes:
        store: Both files, from `setup` on.
        width: Numbers of a feature vector, from `setup` on.
    """

    store: PairStore  # type: ignore[assignment]
    save_orfs = False

    def __init__(self, dnabert_s: str | Path, esm2: str | Path, num_workers: int = 1) -> None:
        """Configure the input; nothing is read yet.

        Args:
            dnabert_s: Embedding file of the nucleotides; the output is in its order.
            esm2: Embedding file of the proteins.
            num_workers: DataLoader processes of each rank; 0 reads in the rank itself.
        """
        super().__init__(dnabert_s, tokens_per_batch=BLOCK, num_workers=num_workers)
        self.files = (Path(dnabert_s), Path(esm2))
        self.width: int | None = None

    def read(self, folder: Path) -> None:
        """Check both files, and hash them.

        Raises:
            InputError: If a file cannot be used, or they do not hold the same ORFs.
        """
        PairStore(*self.files)
        hashes = "\n".join(EmbeddingFile(path).sha256() for path in self.files)
        (folder / "sha256").write_text(hashes)

    def open(self, folder: Path) -> None:
        """Join both files."""
        self.store = PairStore(*self.files)
        self.width = self.store.width
        self.input_sha256 = hashlib.sha256((folder / "sha256").read_bytes()).hexdigest()

    def plan(self) -> list[range]:
        """Cut all rows into blocks of 256."""
        return plan_packs(self.store.lengths, BLOCK, specials=0)

    def tokenise(self, packs: list[NDArray[np.int64]]) -> Dataset[Any]:
        """Make the dataset of some blocks."""
        return Pairs(self.store, packs)

    def transfer_batch_to_device(  # type: ignore[override]
        self, batch: PairBatch, device: torch.device, dataloader_idx: int
    ) -> PairBatch:
        """Copy the features to the device."""
        return batch._replace(features=batch.features.to(device, non_blocking=True))

    def provenance(self) -> dict[str, Any]:
        """What an output records about its input."""
        return {"input_sha256": self.input_sha256, "max_length": None}
