"""Find viral sequences in sequencing data: VirNucPro as a PyTorch Lightning prediction package.

The way of the data::

    FASTA/FASTQ --read and validated once, on rank 0--> rows, mapped by ranks and workers
    rows        --planned, tokenised------------------> packs of consecutive rows
    pack        --encoder, check, mean----------------> Embeddings, or Scores of a classifier
    predictions --writer------------------------------> committed part files of each rank
    parts       --rank 0, every row exactly once------> the output, published by rename

What the three between ask of each other is in `contracts`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from virnucpro_pl.logs import silence_others
from virnucpro_pl.version import __version__

if TYPE_CHECKING:
    from virnucpro_pl.embeddings.embedding_file import load_embeddings
    from virnucpro_pl.embeddings.pair_datamodule import EmbeddingPairDataModule
    from virnucpro_pl.fit.classifier_writer import ClassifierWriter
    from virnucpro_pl.fit.labelled_datamodule import EmbeddingPair, LabelledPairDataModule
    from virnucpro_pl.fit.training import ClassifierTraining
    from virnucpro_pl.input.contig_datamodule import ContigDataModule
    from virnucpro_pl.input.sequence_datamodule import SequenceDataModule
    from virnucpro_pl.output.failures import FailureLog
    from virnucpro_pl.output.hdf5_writer import HDF5Writer
    from virnucpro_pl.output.table_writer import TableWriter
    from virnucpro_pl.precision import PrecisionFromEnv, should_use_fp16
    from virnucpro_pl.predict.embedders import DNABERTSEmbedder, ESM2Embedder
    from virnucpro_pl.predict.virnucpro import VirNucPro, VirusClassifier
    from virnucpro_pl.stability import NumericalInstabilityError, check_numerical_stability

__all__ = [
    "ClassifierTraining",
    "ClassifierWriter",
    "ContigDataModule",
    "DNABERTSEmbedder",
    "ESM2Embedder",
    "EmbeddingPair",
    "EmbeddingPairDataModule",
    "FailureLog",
    "HDF5Writer",
    "LabelledPairDataModule",
    "NumericalInstabilityError",
    "PrecisionFromEnv",
    "SequenceDataModule",
    "TableWriter",
    "VirNucPro",
    "VirusClassifier",
    "__version__",
    "check_numerical_stability",
    "load_embeddings",
    "should_use_fp16",
]

_HOMES = {
    "ClassifierTraining": "fit.training",
    "ClassifierWriter": "fit.classifier_writer",
    "ContigDataModule": "input.contig_datamodule",
    "DNABERTSEmbedder": "predict.embedders",
    "ESM2Embedder": "predict.embedders",
    "EmbeddingPair": "fit.labelled_datamodule",
    "EmbeddingPairDataModule": "embeddings.pair_datamodule",
    "FailureLog": "output.failures",
    "HDF5Writer": "output.hdf5_writer",
    "LabelledPairDataModule": "fit.labelled_datamodule",
    "NumericalInstabilityError": "stability",
    "PrecisionFromEnv": "precision",
    "SequenceDataModule": "input.sequence_datamodule",
    "TableWriter": "output.table_writer",
    "VirNucPro": "predict.virnucpro",
    "VirusClassifier": "predict.virnucpro",
    "check_numerical_stability": "stability",
    "load_embeddings": "embeddings.embedding_file",
    "should_use_fp16": "precision",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `--help` need not load the models."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


silence_others()
