"""The LightningModules that call viruses: from ORFs in one pass, or from embeddings that exist."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor

from virnucpro_pl.embedder import DNABERTSEmbedder, ESM2Embedder, bring_along
from virnucpro_pl.errors import UsageError
from virnucpro_pl.models.classifier import MLPClassifier, load_classifier
from virnucpro_pl.models.weights import hash_of
from virnucpro_pl.sequences.contigs import OrfBatch
from virnucpro_pl.sequences.pairs import PairBatch

__all__ = ["Scores", "VirNucPro", "VirusClassifier"]

log = logging.getLogger(__name__)


class Scores(NamedTuple):
    """What `predict_step` returns."""

    rows: Tensor
    """(N,) int64 row of each ORF in the input; on the host."""
    scores: Tensor
    """(N, 2) fp32: P(others) and P(virus)."""
    dnabert_s: Tensor | None = None
    """(N, 768) fp32 embeddings of the nucleotides."""
    esm2: Tensor | None = None
    """(N, 2560) fp32 embeddings of the proteins."""


class VirNucPro(LightningModule):
    """ESM-2, DNABERT-S and the classifier in one pass: no embedding leaves the device.

    The original: Li et al. 2025, Briefings in Bioinformatics 26(3) bbaf224.
    """

    classifier: MLPClassifier

    def __init__(
        self,
        esm2: ESM2Embedder,
        dnabert_s: DNABERTSEmbedder,
        classifier: str,
        enable_fp16: bool = True,
    ) -> None:
        """Compose the three networks.

        Args:
            esm2: Embeds the proteins.
            dnabert_s: Embeds the nucleotides.
            classifier: A published `.pth`, a state dict, a Lightning checkpoint, or `random`.
            enable_fp16: False for FP32 whatever the Trainer says; so does False at either embedder.
        """
        super().__init__()
        self.esm2 = esm2
        self.dnabert_s = dnabert_s
        self.classifier_source = classifier
        self.enable_fp16 = enable_fp16 and esm2.enable_fp16 and dnabert_s.enable_fp16

    @property
    def embedders(self) -> tuple[DNABERTSEmbedder, ESM2Embedder]:
        """Both embedders, in the order of their features."""
        return self.dnabert_s, self.esm2

    def configure_callbacks(self) -> Sequence[Callback]:
        """Bring the precision rule and the failure log along where the Trainer has none."""
        return bring_along(self.trainer)

    def prepare_data(self) -> None:
        """Find both embedders' weights on rank 0."""
        for embedder in self.embedders:
            embedder.prepare_data()

    def setup(self, stage: str) -> None:
        """Tell every rank where the weights are.

        Raises:
            WeightsError: On every rank, what rank 0 found in `prepare_data`.
        """
        for embedder in self.embedders:
            embedder.setup(stage)

    def configure_model(self) -> None:
        """Load the classifier, which is small, and then the encoders."""
        if hasattr(self, "classifier"):
            return
        for embedder in self.embedders:
            embedder.configure_model()
        width = sum(embedder.width for embedder in self.embedders)
        self.classifier = load_classifier(self.classifier_source, width)
        self.classifier.to(self.trainer.strategy.root_device)

    def on_predict_start(self) -> None:
        """Let both embedders choose what they compile."""
        for embedder in self.embedders:
            embedder.on_predict_start()

    def predict_step(self, batch: OrfBatch, batch_idx: int = 0) -> Scores:
        """Embed and classify one pack of ORFs.

        Raises:
            NumericalInstabilityError: With the model and exactly the ORFs that are not finite.
        """
        nucleotides = self.dnabert_s.predict_step(batch.nucleotides).vectors
        proteins = self.esm2.predict_step(batch.proteins).vectors
        features = torch.cat((nucleotides, proteins), dim=1)  # of the same rows in the same order
        scores = self.classifier.probabilities(features)
        return Scores(batch.rows, scores, nucleotides, proteins)

    def provenance(self) -> dict[str, Any]:
        """What an output records about its models."""
        return {
            **_of_classifier(self.classifier_source),
            **{
                f"{key}_{name}": value
                for name, embedder in (("dnabert_s", self.dnabert_s), ("esm2", self.esm2))
                for key, value in embedder.provenance().items()
                if key not in ("precision",)
            },
            "model": "VirNucPro",
            "precision": str(self.trainer.precision),
            "attention": f"{self.dnabert_s.attention_used} and {self.esm2.attention_used}",
        }


class VirusClassifier(LightningModule):
    """The classifier alone, on embeddings that exist already; always FP32."""

    enable_fp16 = False
    classifier: MLPClassifier

    def __init__(self, classifier: str) -> None:
        """Configure the classifier.

        Args:
            classifier: A published `.pth`, a state dict, a Lightning checkpoint, or `random`.
        """
        super().__init__()
        self.classifier_source = classifier

    def configure_callbacks(self) -> Sequence[Callback]:
        """Bring the precision rule and the failure log along where the Trainer has none."""
        return bring_along(self.trainer)

    def configure_model(self) -> None:
        """Load the classifier, of the embeddings' width.

        Raises:
            UsageError: If the data are no embeddings.
        """
        if hasattr(self, "classifier"):
            return
        width = getattr(self.trainer.datamodule, "width", None)  # type: ignore[attr-defined]
        if width is None:
            raise UsageError("VirusClassifier needs an EmbeddingPairDataModule")
        self.classifier = load_classifier(self.classifier_source, width)

    def predict_step(self, batch: PairBatch, batch_idx: int = 0) -> Scores:
        """Classify one block of ORFs."""
        return Scores(batch.rows, self.classifier.probabilities(batch.features))

    def provenance(self) -> dict[str, Any]:
        """What an output records about its model."""
        return {
            **_of_classifier(self.classifier_source),
            "model": "VirNucPro classifier",
            "precision": str(self.trainer.precision),
            "attention": "none",
        }


def _of_classifier(source: str) -> dict[str, str]:
    return {"classifier": source, "classifier_sha256": hash_of(source)}
