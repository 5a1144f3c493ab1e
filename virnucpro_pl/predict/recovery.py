"""What becomes of sequences that are not finite, or for which the device has no room."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from virnucpro_pl.errors import TooLargeError
from virnucpro_pl.input.packed_batch import PackedBatch
from virnucpro_pl.stability import (
    FAILED,
    RECOMPUTED,
    NumericalInstabilityError,
    describe_instability,
    each_outcome,
)

log = logging.getLogger(__name__)

OnInstability = Literal["raise", "fp32", "skip"]
_OTHER_CHOICES = (
    " on_instability: fp32 (compute these sequences again in FP32) or skip (leave their rows NaN) "
    "let the run go on."
)
Record = Callable[[Exception, list[str], int], None]
"""Writes down a failure: the error, the ids of its sequences, the number of their pack."""


class Found(NamedTuple):
    """What an embedder has found for the sequences of a pack; on the host."""

    vectors: Tensor
    """(N, D) fp32; NaN where there is no vector."""
    outcome: Tensor | None = None
    """(N,) uint8, see `stability`. None if all are fine."""


class Recovery:
    """What an embedder does with a pack that has failed, by its policy."""

    def __init__(
        self,
        policy: OnInstability,
        record: Record,
        embed_in_fp32: Callable[[PackedBatch], Tensor | None],
    ) -> None:
        """Keep the policy.

        Args:
            policy: `raise`, `fp32` or `skip`.
            record: Writes failures down that do not end the run.
            embed_in_fp32: Gives the vectors (N, D) of a pack from the file's own weights, without
                autocast; None where that is what has just failed.
        """
        self.policy = policy
        self.record = record
        self.embed_in_fp32 = embed_in_fp32

    def not_finite(
        self, name: str, hidden: Tensor, vectors: Tensor, batch: PackedBatch, batch_idx: int
    ) -> Found:
        """Go on without the sequences that are not finite, or with their vectors in FP32.

        Args:
            name: The model's.
            hidden: (T, D) hidden states.
            vectors: (N, D) fp32 on the host; changed in place.
            batch: The pack.
            batch_idx: Its number, for the failure log.

        Raises:
            NumericalInstabilityError: With exactly the rows that have those sequences, if the
                policy is `raise`.
        """
        failing = find_failing(hidden, vectors, batch)
        ids = batch.ids_of(failing)
        wrong = vectors if hidden.isfinite().all() else hidden
        error = describe_instability(wrong, name, ids, hint=_OTHER_CHOICES)
        if self.policy == "raise":
            raise error
        outcomes = each_outcome(None, batch.size)
        vectors[failing] = torch.nan
        outcomes[failing] = FAILED
        if self.policy == "fp32":
            again = self.embed_in_fp32(batch.select(failing))
            if again is not None:
                self._mend(name, failing, again.cpu(), vectors, outcomes)
        lost = batch.ids_of([i for i in failing if outcomes[i] == FAILED])
        if lost:
            what = "not even in FP32" if self.policy == "fp32" else "and are left out"
            skipped = NumericalInstabilityError(
                f"{name}: {len(lost)} sequence(s) are not finite, {what}",
                nan_count=error.nan_count,
                inf_count=error.inf_count,
                sequence_ids=lost,
            )
            self.record(skipped, lost, batch_idx)
        return Found(vectors, outcomes)

    def too_large(self, name: str, width: int, batch: PackedBatch, batch_idx: int) -> Found:
        """Go on without a single sequence that does not fit.

        Args:
            name: The model's.
            width: D, numbers of its vectors.
            batch: The pack of that sequence alone.
            batch_idx: Its number, for the failure log.

        Raises:
            TooLargeError: With that sequence, if the policy is `raise`.
        """
        length = int(batch.lengths[0])
        message = f"{name}: out of memory with {batch.ids[0]} alone, of length {length}"
        error = TooLargeError(message, list(batch.ids))
        if self.policy == "raise":
            raise error
        self.record(error, list(batch.ids), batch_idx)
        vectors = torch.full((1, width), torch.nan)
        return Found(vectors, torch.full((1,), FAILED, dtype=torch.uint8))

    @staticmethod
    def _mend(
        name: str, failing: list[int], again: Tensor, vectors: Tensor, outcomes: Tensor
    ) -> None:
        """Take over those of the vectors `again` of the failing rows that are finite."""
        finite = again.isfinite().all(dim=1)
        mended = [i for i, fine in zip(failing, finite.tolist(), strict=True) if fine]
        vectors[mended] = again[finite]
        outcomes[mended] = RECOMPUTED
        if mended:
            log.warning("%s: %d sequence(s) computed again in FP32", name, len(mended))


def find_failing(hidden: Tensor, vectors: Tensor, batch: PackedBatch) -> list[int]:
    """Sequences of a pack that are not finite, in their hidden states (T, D) or their vectors.

    Those (N, D), on the host, can be so alone: a sum of large FP32 numbers.
    """
    bad = ~hidden.isfinite().all(dim=1)
    starts = batch.cu_seqlens.long()
    totals = torch.cat((bad.new_zeros(1, dtype=torch.long), bad.long().cumsum(0)))
    fails = (totals[starts[1:]] > totals[starts[:-1]]).cpu() | ~vectors.isfinite().all(dim=1)
    return fails.nonzero().flatten().tolist()
