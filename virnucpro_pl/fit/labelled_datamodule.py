"""Two sets of embedding files, viral and other, as the training and held-out rows of a classifier.

All ORFs of one input record stand on one side of the split: they overlap in the record's sequence,
so that a classifier would otherwise be tested on what it has learnt by heart.
"""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, Trainer
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from virnucpro_pl.embeddings.embedding_file import EmbeddingFile, known_chunk_length
from virnucpro_pl.embeddings.feature_origin import origin_of
from virnucpro_pl.embeddings.pair_datamodule import PairStore, join
from virnucpro_pl.errors import InputError, UsageError, listed
from virnucpro_pl.fit.embedding_sets import check_alike, common_embedders
from virnucpro_pl.fit.labelled_rows import Batches, LabelledBatch, LabelledRows
from virnucpro_pl.fit.splits import CLASSES, Split, split_records

log = logging.getLogger(__name__)

RECORD_PATTERN = r"(.+)_chunk_\d+[FR][123]"
"""Finds the record in the id of an ORF that this package has named."""
_BLOCK = 4096


@dataclass
class EmbeddingPair:
    """Both embeddings of the same ORFs.

    Attributes:
        dnabert_s: Embedding file of the nucleotides.
        esm2: Embedding file of the proteins, in any order.
    """

    dnabert_s: Path
    esm2: Path


class LabelledPairDataModule(LightningDataModule):
    """Serves viral and other ORFs in shuffled batches, and holds whole records out.

    The split is drawn from torch's seed (`--seed_everything`), within each class.

    Attributes:
        rows: Both sets, from `setup` on.
        record: (M,) number of each row's record, from `setup` on.
        split: Rows of each part, from `setup` on.
        seed: Of the split and of the order of each epoch, from `setup` on.
        width: Numbers of a feature vector, from `setup` on.
        chunk_length: Bases of the chunks of both sets, from `setup` on; None where a file does not
            know.
        embedders: What the files of both sets tell of how they were made, by embedder, from `setup`
            on.
    """

    rows: LabelledRows
    record: NDArray[np.int64]
    split: Split
    seed: int
    width: int
    chunk_length: int | None
    embedders: dict[str, dict[str, str]]

    def __init__(
        self,
        viral: EmbeddingPair,
        other: EmbeddingPair,
        batch_size: int = 32,
        validation_fraction: float = 0.1,
        test_fraction: float = 0.0,
        record_pattern: str = RECORD_PATTERN,
        memory_gb: float = 8.0,
        num_workers: int = 0,
    ) -> None:
        """Configure the input; nothing is read yet.

        Args:
            viral: Embeddings of ORFs of viruses.
            other: Embeddings of ORFs of everything else.
            batch_size: ORFs of a training step.
            validation_fraction: Share of the records of each class that is held out to choose the
                best epoch by.
            test_fraction: Share of the records that is held out beyond that, and looked at once, at
                the end; 0 for none, as in VirNucPro.
            record_pattern: Regular expression that an ORF's whole id matches; its first group is
                the record, which is never divided between training and what is held out.
            memory_gb: Features of up to so many gigabytes are held in memory; more of them are
                copied to a file in the folder for temporary files (TMPDIR), and read batch by
                batch.
            num_workers: DataLoader processes where features are read batch by batch.
        """
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 2),  # batch normalisation
            ("num_workers", num_workers, 0),
            ("memory_gb", memory_gb, 0),
        ):
            if not value >= least:
                raise UsageError(f"--data.{name} must be at least {least}, not {value}")
        if not (0 < validation_fraction and 0 <= test_fraction) or (
            validation_fraction + test_fraction >= 1
        ):
            raise UsageError(
                "--data.validation_fraction must be above 0, --data.test_fraction at least 0, and "
                f"both together below 1, not {validation_fraction} and {test_fraction}"
            )
        self.record_pattern = _compiled(record_pattern)
        self.files = tuple((Path(p.dnabert_s), Path(p.esm2)) for p in (other, viral))
        self.batch_size = batch_size
        self.fractions = (validation_fraction, test_fraction)
        self.memory_gb = memory_gb
        self.num_workers = num_workers
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    @property
    def input_files(self) -> list[Path]:
        """All four files."""
        return [path for pair in self.files for path in pair]

    def setup(self, stage: str) -> None:
        """Join and check all four files, and split the records.

        Raises:
            InputError: If a file cannot be used, or the sets are not of two classes of one kind.
            UsageError: If there is more than one rank, or a class has too few records to split.
        """
        if hasattr(self, "split"):
            return
        if self.trainer is not None and self.trainer.world_size > 1:
            raise UsageError(
                "A classifier is trained by one process: give --trainer.devices 1, not "
                f"{self.trainer.world_size}"
            )
        self._scratch = tempfile.TemporaryDirectory(prefix="virnucpro-pl-")
        folders = [Path(self._scratch.name) / name for name in CLASSES]
        stores = [_joined(folder, *pair) for folder, pair in zip(folders, self.files, strict=True)]
        check_alike(stores[0], stores[1])
        self.chunk_length = _chunk_length(stores)
        self.embedders = common_embedders(stores[0], stores[1])
        self.rows = LabelledRows((stores[0], stores[1]))
        self.width = stores[0].width
        self.record = self._records()
        finite = self._load(Path(self._scratch.name))
        for label, name in enumerate(CLASSES):
            of_class = self.rows.labels == label
            if lost := int((of_class & ~finite).sum()):
                log.warning(
                    "%s: %d of %d ORFs are left out, since their embeddings are not finite",
                    name,
                    lost,
                    of_class.sum(),
                )
        self.seed = torch.initial_seed()
        self.split = split_records(self.rows.labels, self.record, finite, self.fractions, self.seed)
        for line in self.split.described():
            log.info("%s", line)

    def _load(self, scratch: Path) -> NDArray[np.bool_]:
        """Read all features into memory or a file; (M,) flags of the finite rows.

        Raises:
            UsageError: If the file has no room.
        """
        size = len(self.rows) * self.width * 4
        self._is_in_memory = size <= self.memory_gb * 1e9
        if self._is_in_memory:
            return self.rows.load(None)
        advice = (
            f"{size / 1e9:.1f} GB of features are more than --data.memory_gb {self.memory_gb:g}, "
            f"and {scratch.parent}, where they would lie meanwhile, {{}}: give more memory, or "
            "name another folder in TMPDIR"
        )
        free = shutil.disk_usage(scratch).free
        if size > free:
            raise UsageError(advice.format(f"has {free / 1e9:.1f} GB free"))
        log.info("%.1f GB of features lie in %s meanwhile", size / 1e9, scratch.parent)
        try:
            return self.rows.load(scratch)
        except OSError as error:
            raise UsageError(advice.format(f"cannot be written: {error}")) from error

    def _records(self) -> NDArray[np.int64]:
        """(M,) number of each row's record; the sets have none in common.

        Raises:
            InputError: If an id does not tell its record, or a record is in both sets.
        """
        numbers: dict[str, int] = {}
        rows = array("q")
        both: set[str] = set()
        for store in self.rows.stores:
            first = len(numbers)  # of this set
            for name in _each_record(store, self.record_pattern):
                number = numbers.setdefault(name, len(numbers))
                if first and number < first:
                    both.add(name)
                rows.append(number)
        if both:
            raise InputError(
                f"{len(both)} record(s) are in both sets, viral and other: {listed(sorted(both))}. "
                "Each record needs one label: leave it out of one set"
            )
        return np.asarray(rows, np.int64)

    def train_dataloader(self) -> DataLoader[LabelledBatch]:
        """Serve the training rows in a new order at each epoch."""
        return self._loader(self.split.train, self.seed)

    def val_dataloader(self) -> DataLoader[LabelledBatch]:
        """Serve the rows by which the best epoch is chosen."""
        return self._loader(self.split.validation)

    def _loader(
        self, rows: NDArray[np.int64], shuffle_seed: int | None = None
    ) -> DataLoader[LabelledBatch]:
        workers = 0 if self._is_in_memory else self.num_workers
        return DataLoader(
            self.rows,
            batch_size=None,
            sampler=Batches(rows, self.batch_size, shuffle_seed),
            num_workers=workers,
            persistent_workers=workers > 0,
        )

    def provenance(self) -> dict[str, Any]:
        """What the metrics record about their input."""
        return {
            name: {
                model: {"path": str(file.path), **_attributes(file)}
                for model, file in (("dnabert_s", store.dnabert_s), ("esm2", store.esm2))
            }
            for name, store in zip(CLASSES, self.rows.stores, strict=True)
        }

    def identity(self) -> dict[str, Any]:
        """What a training depends on, and its continuation must have in common with it."""
        files = (file for store in self.rows.stores for file in (store.dnabert_s, store.esm2))
        stats = [(str(file.path), file.path.stat()) for file in files]
        return {
            "files": [f"{path} of {s.st_size} bytes, {s.st_mtime_ns}" for path, s in stats],
            "split": self.split.counts,
            "record_pattern": self.record_pattern.pattern,
            "batch_size": self.batch_size,
        }

    def close(self) -> None:
        """Close all files and remove the joins; otherwise that is done when the process ends."""
        for store in self.rows.stores if hasattr(self, "rows") else ():
            store.dnabert_s.close()
            store.esm2.close()
        if self._scratch is not None:
            self._scratch.cleanup()


def labelled_data(trainer: Trainer) -> LabelledPairDataModule:
    """The data of a training.

    Raises:
        UsageError: If they are no labelled embeddings.
    """
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, LabelledPairDataModule):
        raise UsageError(
            "ClassifierTraining needs a LabelledPairDataModule as its data, "
            f"not {type(data).__name__}"
        )
    return data


def _joined(folder: Path, dnabert_s: Path, esm2: Path) -> PairStore:
    files = (EmbeddingFile(dnabert_s), EmbeddingFile(esm2))
    try:
        folder.mkdir()
        join(folder, *files)
    except OSError as error:
        raise UsageError(f"The ids cannot be stored in {folder}: {error}") from error
    finally:
        for file in files:
            file.close()
    return PairStore(folder, dnabert_s, esm2)


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(
            f"--data.record_pattern {pattern!r} is no regular expression: {error}"
        ) from error
    if compiled.groups < 1:
        raise UsageError(
            f"--data.record_pattern {pattern!r} has no group (...) around the record's name"
        )
    return compiled


def _each_record(store: PairStore, pattern: re.Pattern[str]) -> Iterator[str]:
    for start in range(0, len(store), _BLOCK):
        for name in store.ids(np.arange(start, min(start + _BLOCK, len(store)))):
            match = pattern.fullmatch(name)
            if match is None or not match[1]:
                raise InputError(
                    f"{store.dnabert_s.path}: the id {name!r} does not tell its record: it "
                    f"does not match {pattern.pattern!r}. Give --data.record_pattern, whose first "
                    "group is the record ('(.+)' if each row is a record of its own)"
                )
            yield match[1]


def _attributes(file: EmbeddingFile) -> dict[str, str]:
    attributes, key = file.attributes, "input_sha256"
    return {**origin_of(file), **({key: str(attributes[key])} if key in attributes else {})}


def _chunk_length(stores: list[PairStore]) -> int | None:
    """Bases of the chunks of all files; None where one does not know, which the log says.

    Raises:
        InputError: If two files know different ones.
    """
    files = [file for store in stores for file in (store.dnabert_s, store.esm2)]
    length = known_chunk_length(files)
    unknown = [str(file.path) for file in files if file.chunk_length is None]
    if unknown:
        log.info(
            "The classifier will not know for which --data.length it is: no chunk_length is in %s",
            listed(unknown),
        )
    return None if unknown else length
