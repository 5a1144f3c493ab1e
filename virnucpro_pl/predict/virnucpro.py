"""The LightningModules that call viruses: from ORFs in one pass, or from embeddings that exist."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from virnucpro_pl.calibration import Calibration
from virnucpro_pl.contracts import Scores, Tokenizer, source_of, workspace_of
from virnucpro_pl.embeddings.pair_datamodule import EmbeddingPairDataModule, PairBatch
from virnucpro_pl.errors import UsageError, is_out_of_memory
from virnucpro_pl.input.contig_datamodule import OrfBatch
from virnucpro_pl.input.orfs import POOLING
from virnucpro_pl.input.packed_batch import PackedBatch
from virnucpro_pl.models.classifier import (
    RANDOM,
    MLPClassifier,
    check_chunk_length,
    hash_classifier,
    load_classifier,
)
from virnucpro_pl.predict.embedders import DNABERTSEmbedder, ESM2Embedder
from virnucpro_pl.predict.lookahead import Launched, LooksAhead, free_memory
from virnucpro_pl.predict.predict_module import PredictModule
from virnucpro_pl.predict.sequence_embedder import SequenceEmbedder
from virnucpro_pl.stability import (
    FAILED,
    NumericalInstabilityError,
    describe_instability,
    each_outcome,
)

log = logging.getLogger(__name__)


class ClassifyingModule(PredictModule):
    """What both modules share: the classifier, whose faults are found before all else is loaded.

    Attributes:
        classifier: The network, from `configure_model` on.
    """

    classifier: MLPClassifier

    def __init__(self, classifier: str) -> None:
        """Keep the source.

        Args:
            classifier: A published `.pth`, a state dict, a Lightning checkpoint, or `random`.
        """
        super().__init__()
        self.classifier_source = classifier
        self._classifier_sha256 = ""
        self._fault: UsageError | None = None

    def prepare_data(self) -> None:
        """Look at the classifier on rank 0; a fault is kept for all ranks to raise in setup."""
        self._fault = None
        try:
            classifier = load_classifier(self.classifier_source)
            self._check_chunks(classifier)
            self._check_calibration(classifier)
            self._classifier_sha256 = hash_classifier(self.classifier_source)
        except UsageError as error:
            self._fault = error
        if self.classifier_source == RANDOM:
            log.warning("The classifier has RANDOM weights: its calls mean nothing")

    def _check_chunks(self, classifier: MLPClassifier) -> None:
        """See that it is for the data's chunks, if the data could be read. On rank 0.

        Raises:
            UsageError: If it is not.
        """
        data = source_of(self.trainer)
        if data is None or data.fault is not None or not self.trainer.is_global_zero:
            return
        if data.chunk_length is not None:
            check_chunk_length(classifier, self.classifier_source, data.chunk_length)

    def _check_calibration(self, classifier: MLPClassifier) -> None:
        """See that its scores have a known meaning, if the writer needs that.

        Raises:
            UsageError: If they have not.
        """
        workspace = workspace_of(self.trainer)
        option = workspace.needs_calibration if workspace is not None else ""
        if option and classifier.calibration is None:
            raise UsageError(
                f"{option} needs a classifier that knows what its scores mean, and "
                f"{self.classifier_source} does not: train one with virnucpro-pl fit"
            )

    def setup(self, stage: str) -> None:
        """Stop all ranks where the data are none that can be classified, or the classifier is none.

        Raises:
            UsageError: On every rank, what is wrong.
        """
        fault = self.trainer.strategy.broadcast(self._fault)
        if fault is not None:
            raise fault
        self.check_data(source_of(self.trainer))

    @property
    def calibration(self) -> Calibration | None:
        """That of the classifier."""
        return self.classifier.calibration

    @property
    def input_files(self) -> list[Path]:
        """The classifier's file."""
        source = self.classifier_source
        return [] if source == RANDOM else [Path(source).expanduser()]

    def provenance(self) -> dict[str, Any]:
        """What an output records about the classifier."""
        return {
            "classifier": self.classifier_source,
            "classifier_sha256": self._classifier_sha256,
            "precision": str(self.trainer.precision),
        }


class VirNucPro(ClassifyingModule, LooksAhead):
    """ESM-2, DNABERT-S and the classifier in one pass, without a file in between.

    The original: Li et al. 2025, Briefings in Bioinformatics 26(3) bbaf224.
    """

    columns = ("scores", "dnabert_s", "esm2")
    data_needed = "ContigDataModule"

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
            enable_fp16: False for no FP16; so does False at either embedder.
        """
        super().__init__(classifier)
        self.esm2 = esm2
        self.dnabert_s = dnabert_s
        self.enable_fp16 = enable_fp16 and esm2.enable_fp16 and dnabert_s.enable_fp16

    @property
    def input_files(self) -> list[Path]:
        """The classifier's file, and both embedders' files and folders."""
        parts = (embedder.input_files for embedder in self.embedders)
        return [*super().input_files, *chain.from_iterable(parts)]

    @property
    def embedders(self) -> tuple[DNABERTSEmbedder, ESM2Embedder]:
        """Both embedders, in the order of their features."""
        return self.dnabert_s, self.esm2

    @property
    def tokenizers(self) -> tuple[Tokenizer, ...]:
        """Both embedders', in the order of their features."""
        return self.dnabert_s.tokenizer, self.esm2.tokenizer

    def width_of(self, column: str) -> int:
        """Two scores, or D of an embedder."""
        widths = {"scores": 2, "dnabert_s": self.dnabert_s.width, "esm2": self.esm2.width}
        return widths[column]

    def prepare_data(self) -> None:
        """Look at the classifier, which is small, then find both embedders' weights, on rank 0."""
        super().prepare_data()
        if self._fault is None:
            for embedder in self.embedders:
                embedder.prepare_data()

    def setup(self, stage: str) -> None:
        """Tell every rank where the weights are.

        Raises:
            UsageError: On every rank, what rank 0 found in `prepare_data`.
        """
        super().setup(stage)
        self.start_looking()
        for embedder in self.embedders:
            embedder.setup(stage)

    def teardown(self, stage: str) -> None:
        """Give back what was queued for a batch that nobody asked for."""
        self.start_looking()

    def configure_model(self) -> None:
        """Load the encoders and the classifier of their features.

        Raises:
            WeightsError: If the classifier takes features of another width.
        """
        for embedder in self.embedders:
            embedder.configure_model()
        width = sum(embedder.width for embedder in self.embedders)
        classifier = load_classifier(self.classifier_source, width)
        self.classifier = classifier.to(self.trainer.strategy.root_device)

    def on_predict_start(self) -> None:
        """Let both embedders choose what they compile, and keep TF32 from the classifier."""
        for embedder in self.embedders:
            embedder.on_predict_start()
        torch.set_float32_matmul_precision("highest")

    def predict_step(self, batch: OrfBatch, batch_idx: int = 0) -> Scores:
        """Embed and classify one pack of ORFs.

        Raises:
            NumericalInstabilityError: With the model and exactly the ORFs that are not finite.
        """
        if self.has_room_for(batch):
            scores = self._in_one_go(batch)
            if scores is not None:
                return scores
            free_memory()
        # Again, one network after the other: each knows what to do with what fails.
        nucleotides = self.dnabert_s.predict_step(batch.nucleotides, batch_idx)
        proteins = self.esm2.predict_step(batch.proteins, batch_idx)
        vectors = (nucleotides.vectors, proteins.vectors)
        both = [each_outcome(e.outcome, len(batch.ids)) for e in (nucleotides, proteins)]
        outcome = torch.maximum(*both)
        features = torch.cat(vectors, dim=1).to(batch.tokens.device)
        probabilities = self.classifier.probabilities(features).cpu()
        unscored = ~probabilities.isfinite().all(dim=1) & (outcome < FAILED)
        if unscored.any():
            raise _unscored(probabilities, unscored, batch.ids)
        return Scores(batch.rows, probabilities, outcome, *vectors)

    def has_room_for(self, batch: OrfBatch) -> bool:
        """Tell whether the device has not yet been found too small for so many tokens."""
        return all(e.has_room_for(pack) for e, pack in self._packs(batch))

    def launch(self, batch: OrfBatch) -> Launched:
        """Queue both forward passes, the means, the classifier and the stability check."""
        packs = self._packs(batch)
        hidden = [embedder(pack) for embedder, pack in packs]
        pairs = zip(packs, hidden, strict=True)
        vectors = [embedder.pool(states, pack) for (embedder, pack), states in pairs]
        scores = self.classifier.probabilities(torch.cat(vectors, dim=1))
        return Launched.send(batch, hidden, [scores, *vectors])

    def _packs(self, batch: OrfBatch) -> list[tuple[SequenceEmbedder, PackedBatch]]:
        """Each embedder and its pack, of the same rows in the same order."""
        return list(zip(self.embedders, (batch.nucleotides, batch.proteins), strict=True))

    def _in_one_go(self, batch: OrfBatch) -> Scores | None:
        """Scores of a pack with one wait for the device; None if anything fails."""
        try:
            launched = self.launched(batch)
            if not launched.wait():
                return None
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return None
        scores, *vectors = launched.take()
        return Scores(batch.rows, scores, None, *vectors)

    def provenance(self) -> dict[str, Any]:
        """What an output records about its models."""
        return {
            **super().provenance(),
            **{
                f"{key}_{name}": value
                for name, embedder in (("dnabert_s", self.dnabert_s), ("esm2", self.esm2))
                for key, value in embedder.provenance().items()
                if key != "precision"
            },
            "pooling_esm2": POOLING,
            "model": "VirNucPro",
            "attention": f"{self.dnabert_s.attention_used} and {self.esm2.attention_used}",
        }


class VirusClassifier(ClassifyingModule):
    """The classifier alone, on embeddings that exist already; always FP32."""

    columns = ("scores",)
    data_needed = "EmbeddingPairDataModule"
    enable_fp16 = False

    def configure_model(self) -> None:
        """Load the classifier of the embeddings' features.

        Raises:
            WeightsError: If it takes features of another width.
        """
        data = source_of(self.trainer)
        assert isinstance(data, EmbeddingPairDataModule), "setup has seen to it"
        self.classifier = load_classifier(self.classifier_source, data.width)

    @property
    def tokenizers(self) -> tuple[Tokenizer, ...]:
        """None: it reads features."""
        return ()

    def width_of(self, column: str) -> int:
        """Two scores."""
        return 2

    def predict_step(self, batch: PairBatch, batch_idx: int = 0) -> Scores:
        """Classify one block of ORFs; those without an embedding, a row of NaN, get no score.

        Raises:
            NumericalInstabilityError: If finite features give a score that is not finite.
        """
        scores = self.classifier.probabilities(batch.features)
        lost = ~scores.isfinite().all(dim=1)
        failing = lost & batch.features.isfinite().all(dim=1)
        if failing.any():
            raise _unscored(scores, failing, batch.ids)
        return Scores(batch.rows, scores, lost.cpu().byte() * FAILED)

    def provenance(self) -> dict[str, Any]:
        """What an output records about its model."""
        return {**super().provenance(), "model": "VirNucPro classifier", "attention": "none"}


def _unscored(scores: Tensor, failing: Tensor, ids: Sequence[str]) -> NumericalInstabilityError:
    """Build the error for failing rows (N,) of scores (N, 2)."""
    named = [i for i, fails in zip(ids, failing.tolist(), strict=True) if fails]
    return describe_instability(scores[failing], "the classifier", named)
