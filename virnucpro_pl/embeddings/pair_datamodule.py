"""From two embedding files of the same ORFs to blocks of features, joined by id."""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from virnucpro_pl.embeddings.embedding_file import EmbeddingFile, known_chunk_length
from virnucpro_pl.embeddings.id_table import IdTable, match_ids
from virnucpro_pl.errors import InputError, UsageError, listed
from virnucpro_pl.input.orfs import POOLED_RESIDUES, POOLING
from virnucpro_pl.input.packed_datamodule import PackedDataModule
from virnucpro_pl.input.records import map_array, write_array

log = logging.getLogger(__name__)

BLOCK = 256
"""Rows that are classified together, as in VirNucPro: the last float32 digit depends on it."""
_FRAME = re.compile(r"[FR][123]$")


class PairBatch(NamedTuple):
    """Consecutive rows of the DNABERT-S file with their ESM-2 partners."""

    rows: Tensor
    """(N,) int64 row of each ORF in the DNABERT-S file; on the host."""
    ids: tuple[str, ...]
    """(N,) id of each ORF."""
    features: Tensor
    """(N, F) fp32: DNABERT-S, then ESM-2."""
    following: PairBatch | None = None
    """The next batch; nobody begins with it before its time, so small is the work."""

    def to(self, device: torch.device) -> PairBatch:
        """Copy the features to a device, without waiting for it."""
        return self._replace(features=self.features.to(device, non_blocking=True))

    @property
    def tokens(self) -> Tensor:
        """(N,) what the throughput counts: one a row."""
        return self.rows


class PairStore:
    """Two embedding files, joined by id in the order of the DNABERT-S file.

    Attributes:
        unit: What a row is, for messages.
    """

    unit = "ORFs"

    def __init__(self, folder: Path, dnabert_s: Path, esm2: Path) -> None:
        """Map what `join` wrote.

        Args:
            folder: Where.
            dnabert_s: DNABERT-S embeddings.
            esm2: ESM-2 embeddings of the same ORFs, in any order.
        """
        self.folder = folder
        self.dnabert_s = EmbeddingFile(dnabert_s)
        self.esm2 = EmbeddingFile(esm2)
        self.ids = IdTable(folder, "first")
        self.partner: NDArray[np.int64] = map_array(folder / "partner", np.int64)
        self.width = self.dnabert_s.width + self.esm2.width

    def __reduce__(self) -> tuple[type[PairStore], tuple[Path, Path, Path]]:
        """Send the paths to a worker, not the ids."""
        return PairStore, (self.folder, self.dnabert_s.path, self.esm2.path)

    def __len__(self) -> int:
        """Count the ORFs."""
        return len(self.ids)

    def features(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(N, F) features of some ORFs: DNABERT-S, then ESM-2."""
        return np.hstack((self.dnabert_s.rows(rows), self.esm2.rows(self.partner[rows])))


def join(folder: Path, dnabert_s: EmbeddingFile, esm2: EmbeddingFile) -> None:
    """Find for each row of the DNABERT-S file the row of the ESM-2 file that has its id.

    Args:
        folder: Where the result is written, for `PairStore`.
        dnabert_s: DNABERT-S embeddings.
        esm2: ESM-2 embeddings of the same ORFs.

    Raises:
        InputError: If a file is of another model, names an id twice, or lacks an id of the other.
    """
    for file, kind, other in ((dnabert_s, "DNABERT-S", "esm"), (esm2, "ESM-2", "dnabert")):
        model = str(file.attributes.get("model", kind))
        if other in model.lower():
            raise InputError(f"{file.path} holds embeddings of {model}, not of {kind}")
    match, first, second = match_ids((dnabert_s, esm2), folder)
    for file, table, lacking in (
        (dnabert_s, second, match.only_second),
        (esm2, first, match.only_first),
    ):
        if len(lacking):
            names = listed(table(lacking[:1000]))
            raise InputError(f"{file.path} lacks {len(lacking)} id(s) of the other file: {names}")
    partner = match.second
    write_array(folder / "partner", partner)
    _check_lengths(dnabert_s, esm2, first, partner)


def _check_lengths(
    dnabert_s: EmbeddingFile, esm2: EmbeddingFile, ids: IdTable, partner: NDArray[np.int64]
) -> None:
    """Where both files say how long their strings are, check that they are those of ORFs.

    Raises:
        InputError: If strings were cut, or a nucleotide string does not code for its protein.
    """
    bases, residues = dnabert_s.lengths, esm2.lengths
    if bases is None or residues is None:
        return
    for file in (dnabert_s, esm2):
        if file.truncated:
            raise InputError(
                f"{file.path}: {file.truncated} records were cut before they were embedded"
            )
    residues = residues[partner]
    wrong = np.flatnonzero((bases < 3 * residues) | (bases > 3 * residues + 1))
    if len(wrong):
        raise InputError(
            f"{dnabert_s.path} and {esm2.path} are not of the same ORFs: {len(wrong)} have a "
            f"protein of a length that they do not code for: {listed(ids(wrong[:1000]))}"
        )
    longer = int(np.count_nonzero(residues > POOLED_RESIDUES))
    if longer and esm2.attributes.get("pooling") != POOLING:
        log.warning(
            "%s: %d proteins are longer than %d residues; VirNucPro stops its mean there, these "
            "embeddings do not",
            esm2.path,
            longer,
            POOLED_RESIDUES,
        )


@dataclass(eq=False)
class Pairs(Dataset[list[PairBatch]]):
    """Blocks of rows, read from both files when asked for."""

    store: PairStore
    packs: list[NDArray[np.int64]]
    """Rows of each block."""

    def __len__(self) -> int:
        """Count the blocks."""
        return len(self.packs)

    def __getitem__(self, index: int) -> list[PairBatch]:
        """Read one block."""
        rows = self.packs[index]
        features = torch.from_numpy(self.store.features(rows))
        return [PairBatch(torch.from_numpy(rows), tuple(self.store.ids(rows)), features)]


class EmbeddingPairDataModule(PackedDataModule):
    """Serves two embedding files of the same ORFs as blocks of 256 consecutive rows.

    Attributes:
        store: Both files, from `setup` on.
        width: Numbers of a feature vector, from `setup` on.
    """

    store: PairStore
    width: int

    def __init__(self, dnabert_s: str | Path, esm2: str | Path, num_workers: int = 1) -> None:
        """Configure the input; nothing is read yet.

        Args:
            dnabert_s: Embedding file of the nucleotides; the output is in its order.
            esm2: Embedding file of the proteins.
            num_workers: DataLoader processes of each rank; 0 reads in the rank itself.
        """
        super().__init__(num_workers)
        self.files = (Path(dnabert_s), Path(esm2))
        self._chunk_length: int | None = None

    @property
    def input_files(self) -> list[Path]:
        """Both files."""
        return list(self.files)

    def read(self, folder: Path) -> None:
        """Check, join and hash both files.

        Raises:
            InputError: If a file cannot be used, or they do not hold the same ORFs.
        """
        files = [EmbeddingFile(path) for path in self.files]
        try:
            self._chunk_length = known_chunk_length(files)
            join(folder, *files)
            hashes = [file.sha256() for file in files]
            (folder / "sha256").write_text("\n".join(hashes))
        except OSError as error:
            raise UsageError(f"The ids cannot be stored in {folder}: {error}") from error
        finally:
            for file in files:
                file.close()
        ids = IdTable(folder, "first")
        names = ids(np.arange(min(len(ids), 1000)))
        strange = [name for name in names if not _FRAME.search(name)]
        if strange:
            log.warning(
                "%s: ids such as %s do not end in a frame (F1 to R3), the two characters that are "
                "taken off to name a chunk",
                self.files[0],
                listed(strange, 3),
            )
        log.info("%s and %s: %d open reading frames", *self.files, len(ids))

    def open(self, folder: Path) -> None:
        """Map the join."""
        self.store = PairStore(folder, *self.files)
        self.width = self.store.width
        self.input_sha256 = hashlib.sha256((folder / "sha256").read_bytes()).hexdigest()

    def plan(self) -> list[range]:
        """Cut all rows into blocks of 256."""
        count = len(self.store)
        return [range(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]

    def batches(self, packs: list[NDArray[np.int64]]) -> Dataset[Any]:
        """Make the dataset of some blocks."""
        return Pairs(self.store, packs)

    def teardown(self, stage: str) -> None:
        """Close both files, and remove the join where no writer owns its folder."""
        if hasattr(self, "store"):
            self.store.dnabert_s.close()
            self.store.esm2.close()
        super().teardown(stage)

    @property
    def tokens_per_batch(self) -> int:
        """Rows of a block."""
        return BLOCK

    @property
    def input_counts(self) -> dict[str, int]:
        """Nothing: the files hold no letters."""
        return {}

    @property
    def chunk_length(self) -> int | None:
        """Bases of the chunks that the embedded ORFs are of, where a file knows."""
        return self._chunk_length

    def provenance(self) -> dict[str, Any]:
        """What an output records about its input: of the embeddings what their files tell."""
        files = (("dnabert_s", self.store.dnabert_s), ("esm2", self.store.esm2))
        return {
            "input_sha256": self.input_sha256,
            "max_length": None,
            **{
                f"{key}_{name}": str(file.attributes[key])
                for name, file in files
                for key in ("model", "weights", "weights_sha256", "layer", "precision")
                if key in file.attributes
            },
        }
