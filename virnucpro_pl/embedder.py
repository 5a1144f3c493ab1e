"""The LightningModules that embed sequences: packed tokens in, one fp32 vector per sequence out."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from virnucpro_pl.errors import UsageError
from virnucpro_pl.models import dnabert_s, esm2
from virnucpro_pl.models.attention import Attention, BiasedAttention, choose_attention
from virnucpro_pl.models.pooling import pool
from virnucpro_pl.models.weights import SEED, hash_files
from virnucpro_pl.output.failures import FailureLog
from virnucpro_pl.precision import PrecisionFromEnv, unify_precision
from virnucpro_pl.sequences.dna_tokens import DNATokenizer
from virnucpro_pl.sequences.tokens import PackedBatch, ProteinTokenizer, Tokenizer
from virnucpro_pl.stability import (
    NumericalInstabilityError,
    check_numerical_stability,
    describe_instability,
)

if TYPE_CHECKING:
    from concurrent.futures import Future

__all__ = ["DNABERTSEmbedder", "ESM2Embedder", "Embeddings", "SequenceEmbedder"]

log = logging.getLogger(__name__)

_MATRIX_DTYPES = {
    "16-mixed": torch.float16,
    "16-true": torch.float16,
    "bf16-mixed": torch.bfloat16,
    "bf16-true": torch.bfloat16,
    "64-true": torch.float64,
}
"""Linear layers are kept in the dtype that they compute in: autocast would make the same cast of the
same numbers at every step, from twice the memory."""


Compile = Literal["auto"] | bool
COMPILE_FROM = 400
"""Packs of a rank from which on compiling saves more time than it takes (some 10 s on an H100)."""


class Embeddings(NamedTuple):
    """What `predict_step` returns."""

    rows: Tensor
    """(N,) int64 row of each sequence in the input; on the host."""
    vectors: Tensor
    """(N, D) fp32."""


def bring_along(trainer: Trainer) -> list[Callback]:
    """The callbacks that every model of this package needs, but for those that the Trainer has."""
    mine: list[Callback] = [PrecisionFromEnv(), FailureLog()]
    present = {type(callback) for callback in trainer.callbacks}  # type: ignore[attr-defined]
    return [callback for callback in mine if type(callback) not in present]


class StaysOnDevice(LightningModule):
    """A module that Lightning does not copy to the host when a run is over.

    It would before the output is published, and billions of parameters take seconds.
    """

    def cpu(self) -> Self:
        """Stay where the weights are."""
        return self


class SequenceEmbedder(StaysOnDevice, ABC):
    """What all embedders share: when weights are loaded, the forward pass, the check, the mean.

    A subclass says which tokenizer, weights and network it has.

    Attributes:
        tokenizer: Letters, tokens, and which of them are pooled.
        biased: Whether attention scores have a bias.
        encoder: The network, from `configure_model` on.
        attention_used: The attention backend, from `configure_model` on.
    """

    tokenizer: Tokenizer
    biased: ClassVar[bool] = False
    encoder: esm2.ESM2 | dnabert_s.DNABERTS
    attention_used: str

    def __init__(
        self,
        name: str,
        *,
        layer: int | None,
        enable_fp16: bool,
        attention: Attention | BiasedAttention,
        compile: Compile = "auto",
    ) -> None:
        """Keep the options; weights are found in `prepare_data` and loaded in `configure_model`.

        Args:
            name: The model's name, for messages and the output.
            layer: Layer whose hidden states are pooled; None for the last.
            enable_fp16: False for FP32 whatever the Trainer says.
            attention: Attention backend.
            compile: Whether to compile the layers, on a GPU; `auto` does so for long runs.
        """
        super().__init__()
        self.name = name
        self.layer = layer
        self.enable_fp16 = enable_fp16
        self.attention = attention
        self.compile_layers = compile
        self._fill_to = 0
        self._found: Path | UsageError | None = None
        self._hash: Future[str] | None = None

    @abstractmethod
    def find_weights(self) -> Path | None:
        """Find (or download) the weights; None for random ones. Called on rank 0."""

    @abstractmethod
    def load_encoder(
        self, path: Path | None, device: torch.device, matrix_dtype: torch.dtype
    ) -> list[Path]:
        """Set `encoder`; return the files it came from."""

    def configure_callbacks(self) -> Sequence[Callback]:
        """Bring the precision rule and the failure log along where the Trainer has none."""
        return bring_along(self.trainer)

    def prepare_data(self) -> None:
        """Find the weights on rank 0; a fault is kept for all ranks to raise in setup."""
        if getattr(self.trainer.datamodule, "fault", None):  # type: ignore[attr-defined]
            return  # nothing will be computed: no download of 12 GB first
        try:
            self._found = self.find_weights()
        except UsageError as error:
            self._found = error

    def setup(self, stage: str) -> None:
        """Tell every rank where the weights are.

        Raises:
            WeightsError: On every rank, what rank 0 found in `prepare_data`.
        """
        found = self.trainer.strategy.broadcast(self._found)
        if isinstance(found, UsageError):
            raise found
        self._found = found

    def configure_model(self) -> None:
        """Load the weights straight to the device, in the dtype they compute in."""
        if hasattr(self, "encoder"):
            return
        assert not isinstance(self._found, UsageError)
        began = time.monotonic()
        device = self.trainer.strategy.root_device
        dtype = _MATRIX_DTYPES.get(unify_precision(self.trainer.precision), torch.float32)
        files = self.load_encoder(self._found, device, dtype)
        if files and self.trainer.is_global_zero:
            self._hash = hash_files(files)
        reduced = dtype in (torch.float16, torch.bfloat16)
        self.attention_used = choose_attention(
            self.attention, device=device, reduced=reduced, biased=self.biased
        )
        log.info("Loaded %s in %.1f s", self.name, time.monotonic() - began)

    def on_predict_start(self) -> None:
        """Compile the layers, where packed attention runs and the run is long enough to gain by it.

        The choice depends on the whole input, not on what is left of it, so that a continued run
        computes the same numbers as an uninterrupted one.
        """
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        packs = getattr(data, "pack_count", 0) / self.trainer.world_size
        wanted = packs >= COMPILE_FROM if self.compile_layers == "auto" else self.compile_layers
        if wanted and self.attention_used != "sdpa":
            self._fill_to = data.tokens_per_batch
            self.encoder.compile()
            log.info("Layers are compiled at the first pack, for %d packs", packs)

    def check_layer(self, layers: int) -> None:
        """Check that a network of so many layers has the one asked for.

        Raises:
            UsageError: If it has not.
        """
        if self.layer is not None and not 0 <= self.layer <= layers:
            raise UsageError(f"{self.name} has layers 0 to {layers}, not {self.layer}")

    @property
    def weights_sha256(self) -> str:
        """Content hash of the weights; waits for it. Only rank 0 computes it."""
        return self._hash.result() if self._hash else f"random:{self.name}:{SEED}"

    def provenance(self) -> dict[str, Any]:
        """What an output file records about its model."""
        return {
            "model": self.name,
            "weights_sha256": self.weights_sha256,
            "layer": self.encoder.config.layers if self.layer is None else self.layer,
            "pooling": self.pooling,
            "precision": str(self.trainer.precision),
            "attention": self.attention_used,
        }

    @property
    def width(self) -> int:
        """D, numbers of a vector; from `configure_model` on."""
        return int(self.encoder.config.width)

    @property
    def pooling(self) -> str:
        """Which tokens go into a sequence's vector, in words."""
        return "mean of residues" if self.tokenizer.margin else "mean of all tokens"

    def forward(self, batch: PackedBatch) -> Tensor:
        """Hidden states (T, D) of a pack."""
        return self.encoder(  # type: ignore[no-any-return]
            batch.tokens,
            batch.cu_seqlens,
            batch.max_seqlen,
            self.attention_used,
            self.layer,
            self._fill_to,
        )

    def predict_step(self, batch: PackedBatch, batch_idx: int = 0) -> Embeddings:
        """Embed one pack.

        Raises:
            NumericalInstabilityError: With exactly the sequences that are not finite.
        """
        hidden = self(batch)
        vectors = self.pool(hidden, batch)  # queued before the check waits for the device
        self.check(hidden, batch)
        return Embeddings(batch.rows, vectors)

    @staticmethod
    def pool(hidden: Tensor, batch: PackedBatch) -> Tensor:
        """Vectors (N, D) in fp32 of hidden states (T, D)."""
        return pool(hidden, batch.pool_tokens, batch.pool_offsets)

    def check(self, hidden: Tensor, batch: PackedBatch) -> None:
        """Check hidden states (T, D); after a fault, find whose they are."""
        try:
            check_numerical_stability(hidden, self.name)
        except NumericalInstabilityError as error:
            bad = ~hidden.isfinite().all(dim=1)
            starts = batch.cu_seqlens.long()
            totals = torch.cat((bad.new_zeros(1, dtype=torch.long), bad.long().cumsum(0)))
            failing = (totals[starts[1:]] > totals[starts[:-1]]).tolist()
            ids = [i for i, fails in zip(batch.ids, failing, strict=True) if fails]
            raise describe_instability(hidden, self.name, ids) from error


class ESM2Embedder(SequenceEmbedder):
    """ESM-2 embeddings of proteins: the mean of a layer's hidden states over all residues."""

    def __init__(
        self,
        name: str = "esm2_t36_3B_UR50D",
        weights: str | None = None,
        layer: int | None = None,
        enable_fp16: bool = True,
        attention: Attention = "auto",
        compile: Compile = "auto",
    ) -> None:
        """Configure an ESM-2.

        Args:
            name: A published size, such as esm2_t6_8M_UR50D, 35M, 150M, 650M, 3B or 15B.
            weights: Nothing for the published file of that name (torch hub cache, else download), a
                fair-esm `.pt` file, a transformers folder, or `random` for a trial.
            layer: Layer to pool, 0 for the token embeddings; nothing for the last.
            enable_fp16: False for FP32 whatever the Trainer says.
            attention: `triton` or `varlen` (packed, GPU only), `sdpa` (any device), or `auto`.
            compile: Whether to compile the layers on a GPU; `auto` does so for long runs.
        """
        super().__init__(
            name, layer=layer, enable_fp16=enable_fp16, attention=attention, compile=compile
        )
        self.weights = weights
        self.tokenizer = ProteinTokenizer()

    def find_weights(self) -> Path | None:
        """Find (or download) the weights; None for random ones."""
        return esm2.find_weights(self.name, self.weights)

    def load_encoder(
        self, path: Path | None, device: torch.device, matrix_dtype: torch.dtype
    ) -> list[Path]:
        """Load the network and check that it has the layer asked for.

        Raises:
            UsageError: If it has not.
        """
        encoder, files = esm2.load_esm2(self.name, path, device=device, matrix_dtype=matrix_dtype)
        self.check_layer(encoder.config.layers)
        self.encoder = encoder
        return files


class DNABERTSEmbedder(SequenceEmbedder):
    """DNABERT-S embeddings of DNA: the mean of a layer's hidden states over all tokens."""

    biased = True

    def __init__(
        self,
        weights: str | None = None,
        tokenizer: str | None = None,
        layer: int | None = None,
        enable_fp16: bool = True,
        attention: BiasedAttention = "auto",
        compile: Compile = "auto",
        size: dnabert_s.Size = "published",
    ) -> None:
        """Configure a DNABERT-S.

        Args:
            weights: Nothing for zhihan1996/DNABERT-S (Hugging Face cache, else download), a folder
                with config.json and weights, a weights file beside its config.json, or `random` for
                a trial.
            tokenizer: A tokenizer.json or a folder with one; nothing for the one that lies with the
                weights, or the built-in one of random weights.
            layer: Layer to pool, 0 for the token embeddings; nothing for the last.
            enable_fp16: False for FP32 whatever the Trainer says.
            attention: `triton` (packed, GPU only), `sdpa` (any device), or `auto`.
            compile: Whether to compile the layers on a GPU; `auto` does so for long runs.
            size: Size of random weights, `published` or `tiny`; other weights have their own.
        """
        name = "DNABERT-S" if size == "published" else f"DNABERT-S-{size}"
        super().__init__(
            name, layer=layer, enable_fp16=enable_fp16, attention=attention, compile=compile
        )
        self.weights = weights
        self.size = size
        self.named_tokenizer = tokenizer
        # Where the authors' lies in the cache is known in `setup`; its letters are needed before.
        expected = None if weights == "random" else Path(weights or dnabert_s.REPOSITORY)
        self.tokenizer: DNATokenizer = self.find_tokenizer(expected)

    def find_tokenizer(self, weights: Path | None) -> DNATokenizer:
        """The tokenizer asked for, or the one that lies with these weights; it is not read yet."""
        if self.named_tokenizer is None and weights is None:
            return DNATokenizer()
        path = Path(self.named_tokenizer).expanduser() if self.named_tokenizer else weights
        assert path is not None
        if path.suffix != ".json":
            folder = path.parent if path.is_file() else path
            path = folder / "tokenizer.json"
        return DNATokenizer(path)

    def find_weights(self) -> Path | None:
        """Find (or download) the weights; None for random ones.

        Raises:
            UsageError: If they or their tokenizer are missing or damaged.
        """
        path = dnabert_s.find_weights(self.size, self.weights)
        self.find_tokenizer(path).load()
        return path

    def setup(self, stage: str) -> None:
        """Tell every rank where weights and tokenizer are.

        Raises:
            UsageError: On every rank, what rank 0 found in `prepare_data`.
        """
        super().setup(stage)
        assert not isinstance(self._found, UsageError)
        self.tokenizer = self.find_tokenizer(self._found)

    def load_encoder(
        self, path: Path | None, device: torch.device, matrix_dtype: torch.dtype
    ) -> list[Path]:
        """Load the network and check that it has the layer asked for and all of the tokens.

        Raises:
            UsageError: If it has not.
        """
        encoder, files = dnabert_s.load_dnabert_s(
            self.size, path, device=device, matrix_dtype=matrix_dtype
        )
        self.check_layer(encoder.config.layers)
        known, needed = encoder.config.vocabulary, self.tokenizer.vocabulary
        if needed > known:
            raise UsageError(
                f"{self.tokenizer.file} has {needed} tokens, but {self.name} knows {known}: "
                "it is the tokenizer of another model"
            )
        self.encoder = encoder
        return files

    def provenance(self) -> dict[str, Any]:
        """What an output file records about its model, its origin and its tokenizer."""
        assert not isinstance(self._found, UsageError)
        return {
            **super().provenance(),
            "weights_revision": dnabert_s.revision(self._found),
            "tokenizer_sha256": self.tokenizer.sha256,
        }
