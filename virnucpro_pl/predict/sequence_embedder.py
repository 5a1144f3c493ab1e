"""What embedding modules share: packed tokens in, one fp32 vector per sequence out."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from virnucpro_pl.contracts import (
    Embeddings,
    SequenceSource,
    Tokenizer,
    failure_records_of,
    source_of,
)
from virnucpro_pl.errors import is_out_of_memory
from virnucpro_pl.input.orfs import MEAN_OF_RESIDUES
from virnucpro_pl.input.packed_batch import PackedBatch
from virnucpro_pl.models.attention import Attention, BiasedAttention
from virnucpro_pl.models.cpu_speed import count_parameters, estimate_pace
from virnucpro_pl.models.dnabert_s import DNABERTS
from virnucpro_pl.models.esm2 import ESM2
from virnucpro_pl.models.pooling import pool
from virnucpro_pl.predict.encoder_module import EncoderModule
from virnucpro_pl.predict.lookahead import Launched, LooksAhead, free_memory
from virnucpro_pl.predict.recovery import Found, OnInstability, Recovery
from virnucpro_pl.stability import each_outcome

log = logging.getLogger(__name__)

Compile = Literal["auto"] | bool
SLOW_FROM = 5_000_000
"""Parameters, fewer than those of any published model, from which on the log says how long a CPU
takes."""


class SequenceEmbedder(EncoderModule, LooksAhead):
    """What all embedders share: the forward pass, the check, the mean.

    A subclass says which tokenizer, weights and network it has.

    Attributes:
        tokenizer: Letters, tokens, and which of them are pooled.
    """

    columns = ("vectors",)
    data_needed = "SequenceDataModule"
    spreads = True
    tokenizer: Tokenizer

    def __init__(
        self,
        name: str,
        *,
        layer: int | None,
        enable_fp16: bool,
        attention: Attention | BiasedAttention,
        compile: Compile = "auto",
        on_instability: OnInstability = "raise",
    ) -> None:
        """Keep the options of an embedder; `name` is the model's until its sizes are known."""
        super().__init__(name, layer=layer, enable_fp16=enable_fp16, attention=attention)
        self.compile_layers = compile
        self.on_instability = on_instability
        self._recovery = Recovery(on_instability, self._record, self._embed_in_fp32)
        self._start_over()

    @property
    def tokenizers(self) -> tuple[Tokenizer, ...]:
        """Its only tokenizer."""
        return (self.tokenizer,)

    @property
    def leaves_out_failures(self) -> bool:
        """Whether a row that cannot be had is left NaN and the run goes on."""
        return self.on_instability != "raise"

    def setup(self, stage: str) -> None:
        """Tell every rank where the weights are.

        Raises:
            UsageError: On every rank, what rank 0 found in `prepare_data`.
        """
        super().setup(stage)
        self._start_over()

    def _start_over(self) -> None:
        """Forget what a run has found out: another Trainer may have other devices."""
        self._budget: int | None = None
        self.start_looking()
        self._full_encoder: list[ESM2 | DNABERTS] = []  # within a list it is no part of the module

    def on_predict_start(self) -> None:
        """On a CPU, say how long the run will take."""
        data = source_of(self.trainer)
        on_cpu = self.trainer.strategy.root_device.type == "cpu"
        if (
            on_cpu
            and isinstance(data, SequenceSource)
            and count_parameters(self.encoder) > SLOW_FROM
            and (left := data.tokens_left(self.tokenizer))
        ):
            self._foretell(left)

    def _foretell(self, tokens: float) -> None:
        """Say how long so many tokens take; called on every rank, since all compute at once."""
        ranks = self.trainer.world_size
        pace = estimate_pace(self.encoder) * ranks
        minutes = tokens / pace / 60
        time_needed = f"{minutes:.0f} minutes" if minutes >= 1 else "less than a minute"
        if minutes >= 90:
            time_needed = f"{minutes / 60:,.1f} hours"
        if self.trainer.is_global_zero:
            log.info(
                "%s on the CPU: about %s tokens/s by a timed matrix product, so %s for its %s "
                "tokens",
                self.name,
                f"{pace:,.0f}" if pace >= 10 else f"{pace:.1f}",
                time_needed,
                f"{tokens:,.0f}",
            )

    def teardown(self, stage: str) -> None:
        """Give back what was queued for a batch that nobody asked for."""
        self.start_looking()

    def provenance(self) -> dict[str, Any]:
        """What an output file records about its model."""
        return {
            "model": self.name,
            "weights": self.origin,
            "weights_sha256": self.weights_sha256,
            "layer": self.encoder.config.layers if self.layer is None else self.layer,
            "pooling": self.pooling,
            "precision": str(self.trainer.precision),
            "attention": self.attention_used,
            "on_instability": self.on_instability,
        }

    @property
    def pooling(self) -> str:
        """Which tokens go into a sequence's vector, in words."""
        return MEAN_OF_RESIDUES if self.tokenizer.margin else "mean of all tokens"

    @property
    def is_fused(self) -> bool:
        """Whether kernels compute what lies between the matrix products."""
        return self.compile_layers is not False and self.attention_used != "sdpa"

    def forward(self, batch: PackedBatch) -> Tensor:
        """Hidden states (T, D) of a pack."""
        return self.encoder(  # type: ignore[no-any-return]
            batch.tokens,
            batch.cu_seqlens,
            batch.max_seqlen,
            self.attention_used,
            self.layer,
            self.is_fused,
        )

    def launch(self, batch: PackedBatch) -> Launched:
        """Queue a pack's forward pass, its means and the stability check."""
        hidden = self(batch)
        return Launched.send(batch, [hidden], [self.pool(hidden, batch)])

    def predict_step(self, batch: PackedBatch, batch_idx: int = 0) -> Embeddings:
        """Embed one pack, in pieces where the device has no room for all of it.

        Returns:
            A vector for each row; those of rows with equal sequences are equal, bit by bit.

        Raises:
            NumericalInstabilityError: With exactly the rows whose sequences are not finite, if
                `on_instability` is `raise`.
            TooLargeError: If a single sequence does not fit, and `on_instability` is `raise`.
        """
        vectors, outcome = self._embed(batch, batch_idx)
        outcome = None if outcome is None else batch.of_rows(outcome)
        return Embeddings(batch.rows, batch.of_rows(vectors), outcome)

    def _embed(self, batch: PackedBatch, batch_idx: int) -> Found:
        """What is found for each sequence of a pack."""
        if not self.has_room_for(batch) and batch.size > 1:
            return self._embed_halves(batch, batch_idx)
        try:
            return self._embed_whole(batch, batch_idx)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        free_memory()  # out of the except clause, where the traceback would hold the tensors
        if batch.size == 1:
            return self._recovery.too_large(self.name, self.width, batch, batch_idx)
        self._budget = len(batch.tokens) // 2
        log.warning(
            "%s: out of memory with %d tokens; from here on packs have at most %d. Fewer with "
            "--data.tokens_per_batch from the start would be faster",
            self.name,
            len(batch.tokens),
            self._budget,
        )
        return self._embed_halves(batch, batch_idx)

    def has_room_for(self, batch: PackedBatch) -> bool:
        """Tell whether the device has not yet been found too small for so many tokens."""
        return self._budget is None or len(batch.tokens) <= self._budget

    def _embed_whole(self, batch: PackedBatch, batch_idx: int) -> Found:
        launched = self.launched(batch)
        finite = launched.wait()
        (vectors,) = launched.take()
        if finite:
            return Found(vectors)
        (hidden,) = launched.hidden
        return self._recovery.not_finite(self.name, hidden, vectors, batch, batch_idx)

    def _embed_halves(self, batch: PackedBatch, batch_idx: int) -> Found:
        middle = batch.size // 2
        parts = [range(middle), range(middle, batch.size)]
        halves = [self._embed(batch.select(part), batch_idx) for part in parts]
        vectors = torch.cat([half.vectors for half in halves])
        outcomes = [each_outcome(half.outcome, len(half.vectors)) for half in halves]
        return Found(vectors, torch.cat(outcomes))

    def _embed_in_fp32(self, batch: PackedBatch) -> Tensor | None:
        """Vectors (N, D) from the file's own weights, without autocast; None if these ran by now.

        The network is loaded once more, as the file has it.
        """
        if not self.is_reduced:
            return None
        device = batch.tokens.device
        torch.set_float32_matmul_precision("highest")
        with torch.autocast(device.type, enabled=False), _default_dtype(torch.float32):
            if not self._full_encoder:
                self._full_encoder += self.load_encoder(self._found, device, torch.float32)[:1]
            tokens, starts, longest = batch.tokens, batch.cu_seqlens, batch.max_seqlen
            hidden: Tensor = self._full_encoder[0](tokens, starts, longest, "sdpa", self.layer)
            return self.pool(hidden, batch)

    def _record(self, error: Exception, ids: list[str], batch_idx: int) -> None:
        for failures in failure_records_of(self.trainer):
            failures.record(self.trainer, error, ids, batch_idx)

    @staticmethod
    def pool(hidden: Tensor, batch: PackedBatch) -> Tensor:
        """Vectors (N, D) in fp32 of hidden states (T, D)."""
        return pool(hidden, batch.pool_tokens, batch.pool_offsets)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Set the dtype of new tensors, which Lightning's true precisions have changed."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
