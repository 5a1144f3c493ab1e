"""What becomes of sequences that are not finite, or for which the device has no room."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from virnucpro_pl.errors import TooLargeError
from virnucpro_pl.output.failures import FailureLog
from virnucpro_pl.stability import (
    FAILED,
    RECOMPUTED,
    NumericalInstabilityError,
    describe_instability,
    each_outcome,
)

if TYPE_CHECKING:
    from virnucpro_pl.input.tokens import PackedBatch
    from virnucpro_pl.models.dnabert_s import DNABERTS
    from virnucpro_pl.models.esm2 import ESM2
    from virnucpro_pl.predict.sequence_embedder import SequenceEmbedder


log = logging.getLogger(__name__)

OnInstability = Literal["raise", "fp32", "skip"]
_OTHER_CHOICES = (
    " on_instability: fp32 (compute these sequences again in FP32) or skip (leave their rows NaN) "
    "let the run go on."
)


class Embeddings(NamedTuple):
    """What `predict_step` returns; all of it on the host."""

    rows: Tensor
    """(N,) int64 row of each sequence in the input."""
    vectors: Tensor
    """(N, D) fp32; NaN where there is no vector."""
    outcome: Tensor | None = None
    """(N,) uint8: 0 fine, 1 computed again in FP32, 2 failed (see `stability`). None if all are
    fine."""


class Recovery:
    """What an embedder does with a pack that has failed, by its policy."""

    def __init__(self, embedder: SequenceEmbedder, policy: OnInstability) -> None:
        """Keep the policy.

        Args:
            embedder: Whose packs fail.
            policy: `raise`, `fp32` or `skip`.
        """
        self.embedder = embedder
        self.policy = policy
        self._full: ESM2 | DNABERTS | None = None

    def start_over(self) -> None:
        """Forget the FP32 network: another Trainer may have another device."""
        self._full = None

    def not_finite(
        self, hidden: Tensor, vectors: Tensor, batch: PackedBatch, batch_idx: int
    ) -> Embeddings:
        """Go on without the sequences that are not finite, or with their vectors in FP32.

        Args:
            hidden: (T, D) hidden states.
            vectors: (N, D) fp32 on the host; changed in place.
            batch: The pack.
            batch_idx: Its number, for the failure log.

        Raises:
            NumericalInstabilityError: With exactly those sequences, if the policy is `raise`.
        """
        name = self.embedder.name
        failing = find_failing(hidden, vectors, batch)
        ids = [batch.ids[i] for i in failing]
        wrong = vectors if hidden.isfinite().all() else hidden
        error = describe_instability(wrong, name, ids, hint=_OTHER_CHOICES)
        if self.policy == "raise":
            raise error
        outcomes = each_outcome(None, len(batch.ids))
        vectors[failing] = torch.nan
        outcomes[failing] = FAILED
        if self.policy == "fp32" and self.embedder.is_reduced:
            again = self._embed_in_fp32(batch.select(failing)).cpu()
            finite = again.isfinite().all(dim=1)
            mended = [i for i, fine in zip(failing, finite.tolist(), strict=True) if fine]
            vectors[mended] = again[finite]
            outcomes[mended] = RECOMPUTED
            if mended:
                log.warning("%s: %d sequence(s) computed again in FP32", name, len(mended))
        lost = [batch.ids[i] for i in failing if outcomes[i] == FAILED]
        if lost:
            what = "not even in FP32" if self.policy == "fp32" else "and are left out"
            skipped = NumericalInstabilityError(
                f"{name}: {len(lost)} sequence(s) are not finite, {what}",
                nan_count=error.nan_count,
                inf_count=error.inf_count,
                sequence_ids=lost,
            )
            self._record(skipped, lost, batch_idx)
        return Embeddings(batch.rows, vectors, outcomes)

    def too_large(self, batch: PackedBatch, batch_idx: int) -> Embeddings:
        """Go on without a single sequence that does not fit.

        Raises:
            TooLargeError: With that sequence, if the policy is `raise`.
        """
        error = TooLargeError(
            f"{self.embedder.name}: out of memory with {batch.ids[0]} alone, of length "
            f"{int(batch.lengths[0])}",
            list(batch.ids),
        )
        if self.policy == "raise":
            raise error
        self._record(error, list(batch.ids), batch_idx)
        vectors = torch.full((1, self.embedder.width), torch.nan)
        return Embeddings(batch.rows, vectors, torch.full((1,), FAILED, dtype=torch.uint8))

    def _embed_in_fp32(self, batch: PackedBatch) -> Tensor:
        """Vectors (N, D) from the file's own weights, without autocast."""
        device = batch.tokens.device
        torch.set_float32_matmul_precision("highest")
        with torch.autocast(device.type, enabled=False), _default_dtype(torch.float32):
            if self._full is None:
                self._full = self.embedder.load_in_fp32(device)
            tokens, starts, longest = batch.tokens, batch.cu_seqlens, batch.max_seqlen
            hidden = self._full(tokens, starts, longest, "sdpa", self.embedder.layer)
            return self.embedder.pool(hidden, batch)

    def _record(self, error: Exception, ids: list[str], batch_idx: int) -> None:
        trainer = self.embedder.trainer
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, FailureLog):
                callback.record(trainer, error, ids, batch_idx)


def find_failing(hidden: Tensor, vectors: Tensor, batch: PackedBatch) -> list[int]:
    """Sequences of a pack that are not finite, in their hidden states (T, D) or their vectors.

    Those (N, D), on the host, can be so alone: a sum of large FP32 numbers.
    """
    bad = ~hidden.isfinite().all(dim=1)
    starts = batch.cu_seqlens.long()
    totals = torch.cat((bad.new_zeros(1, dtype=torch.long), bad.long().cumsum(0)))
    fails = (totals[starts[1:]] > totals[starts[:-1]]).cpu() | ~vectors.isfinite().all(dim=1)
    return fails.nonzero().flatten().tolist()


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Set the dtype of new tensors, which Lightning's true precisions have changed."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
