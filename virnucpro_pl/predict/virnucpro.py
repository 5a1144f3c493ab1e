"""The LightningModules that call viruses: from ORFs in one pass, or from embeddings that exist."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import torch

from virnucpro_pl.contracts import Scores, Tokenizer, source_of, workspace_of
from virnucpro_pl.embeddings.feature_origin import PRECISION, TITLES, longest_of, origin_of
from virnucpro_pl.embeddings.pair_datamodule import EmbeddingPairDataModule, PairBatch
from virnucpro_pl.errors import UsageError, is_out_of_memory
from virnucpro_pl.input.contig_datamodule import ContigDataModule
from virnucpro_pl.input.orf_batch import OrfBatch
from virnucpro_pl.input.orfs import POOLING
from virnucpro_pl.input.packed_batch import PackedBatch
from virnucpro_pl.models.classifier import check_width, load_classifier
from virnucpro_pl.models.esm2 import SIZES
from virnucpro_pl.predict.classifying_module import ClassifyingModule, unscored_error
from virnucpro_pl.predict.embedders import DNABERTSEmbedder, ESM2Embedder
from virnucpro_pl.predict.lookahead import Launched, LooksAhead, free_memory
from virnucpro_pl.predict.sequence_embedder import SequenceEmbedder
from virnucpro_pl.stability import FAILED, each_outcome


class VirNucPro(ClassifyingModule, LooksAhead):
    """ESM-2, DNABERT-S and the classifier in one pass, without a file in between.

    The original: Li et al. 2025, Briefings in Bioinformatics 26(3) bbaf224.
    """

    columns = ("scores", "dnabert_s", "esm2")
    data_needed = "ContigDataModule"
    spreads = True

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
        self._unhashed = False

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

    def origins(self) -> dict[str, dict[str, str | None]]:
        """How both embedders make features, as far as it is known by now; on rank 0."""
        precision = str(self.trainer.precision)
        known = {
            name: {**e.identity(), "pooling": e.pooling, PRECISION: precision}
            for name, e in zip(TITLES, self.embedders, strict=True)
        }
        known["esm2"]["pooling"] = POOLING
        return known

    def longest_protein(self) -> int | None:
        """Residues of the longest ORF that is embedded."""
        data = source_of(self.trainer)
        if not isinstance(data, ContigDataModule):
            return None
        return int(data.kept_lengths(self.esm2.tokenizer).max(initial=0))

    def check_features(self) -> None:
        """Refuse a classifier of features of another width than both embedders give.

        Raises:
            WeightsError: With both widths.
        """
        sizes = [embedder.sizes for embedder in self.embedders]
        if self._features is not None and all(sizes):
            check_width(self._features, sum(s.width for s in sizes if s), self.classifier_source)

    @property
    def advice(self) -> str:
        """Options of the embedders."""
        trained = (self._trained or {}).get("esm2", {}).get("model")
        is_other = trained in SIZES and self.origins()["esm2"]["model"] not in (trained, None)
        name = f", such as --model.esm2.name {trained}" if is_other else ""
        return (
            "Give the embedders that it was trained with (--model.esm2.*, --model.dnabert_s.*"
            f"{name}) or another --model.classifier"
        )

    def width_of(self, column: str) -> int:
        """Two scores, or D of an embedder."""
        widths = {"scores": 2, "dnabert_s": self.dnabert_s.width, "esm2": self.esm2.width}
        return widths[column]

    def prepare_data(self) -> None:
        """Look at the classifier, which is small, then find both embedders' weights, on rank 0.

        Others than it was trained on are not downloaded first.
        """
        super().prepare_data()
        if self._fault is None:
            try:
                self.check_embedders()
                self.check_features()
            except UsageError as error:
                self._fault = error
        if self._fault is None:
            for embedder in self.embedders:
                embedder.prepare_data()

    def setup(self, stage: str) -> None:
        """Tell every rank where the weights are.

        Raises:
            UsageError: On every rank, what rank 0 found in `prepare_data`, or if the classifier was
                trained with other embedders, as far as that is known before they are hashed.
        """
        super().setup(stage)
        self.start_looking()
        for embedder in self.embedders:
            embedder.setup(stage)
        self.refuse_other_embedders()
        self._unhashed = self._trained is not None and self.trainer.is_global_zero

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
        """Let both embedders tell how they compute, and keep TF32 from the classifier."""
        for embedder in self.embedders:
            embedder.on_predict_start()
        torch.set_float32_matmul_precision("highest")

    def on_predict_end(self) -> None:
        """Wait for the hashes of the weights where no writer does, so that calls are never wrong.

        Raises:
            UsageError: If they are not those that the classifier was trained with.
        """
        if self._unhashed and workspace_of(self.trainer) is None:
            self._check_hashes()

    def _check_hashes(self) -> None:
        for embedder in self.embedders:
            _ = embedder.weights_sha256  # waits
        self.check_embedders()
        self._unhashed = False  # not before: whoever waits for the same hashes shall see it, too

    def predict_step(self, batch: OrfBatch, batch_idx: int = 0) -> Scores:
        """Embed and classify one pack of ORFs.

        Raises:
            NumericalInstabilityError: With the model and exactly the ORFs that are not finite.
            UsageError: As soon as the weights' hashes are there, if they are not those that the
                classifier was trained with.
        """
        if self._unhashed and all(embedder.is_hashed for embedder in self.embedders):
            self._check_hashes()
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
        features = batch.of_orfs(torch.cat(vectors, dim=1)).to(batch.tokens.device)
        probabilities = batch.of_rows(self.classifier.probabilities(features).cpu())
        unscored = ~probabilities.isfinite().all(dim=1) & (outcome < FAILED)
        if unscored.any():
            raise unscored_error(probabilities, unscored, batch.ids)
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
        scores = self.classifier.probabilities(batch.join(*vectors))
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
        pairs = zip(self._packs(batch), vectors, strict=True)
        spread = (pack.of_rows(numbers) for (_, pack), numbers in pairs)
        return Scores(batch.rows, batch.of_rows(scores), None, *spread)

    def provenance(self) -> dict[str, Any]:
        """What an output records about its models; waits for the weights' hashes.

        Raises:
            UsageError: If they are not those that the classifier was trained with.
        """
        self._check_hashes()
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

    @property
    def advice(self) -> str:
        """Other files."""
        return "Embed these ORFs as it was trained, or give another --model.classifier"

    def setup(self, stage: str) -> None:
        """Stop all ranks where these are no embeddings of the kind that it was trained on.

        Raises:
            UsageError: On every rank, what is wrong.
        """
        super().setup(stage)
        self.refuse_other_embedders()

    def _data(self) -> EmbeddingPairDataModule:
        data = source_of(self.trainer)
        assert isinstance(data, EmbeddingPairDataModule), "setup has seen to it"
        return data

    def origins(self) -> dict[str, dict[str, str | None]]:
        """What both files tell of how they were made."""
        store = self._data().store
        return {name: {**origin_of(getattr(store, name))} for name in TITLES}

    def longest_protein(self) -> int | None:
        """Residues of the longest ORF, if the file tells."""
        return longest_of(self._data().store.esm2)

    def configure_model(self) -> None:
        """Load the classifier of the embeddings' features.

        Raises:
            WeightsError: If it takes features of another width.
        """
        self.classifier = load_classifier(self.classifier_source, self._data().width)

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
            raise unscored_error(scores, failing, batch.ids)
        return Scores(batch.rows, scores, lost.cpu().byte() * FAILED)

    def provenance(self) -> dict[str, Any]:
        """What an output records about its model."""
        return {**super().provenance(), "model": "VirNucPro classifier", "attention": "none"}
