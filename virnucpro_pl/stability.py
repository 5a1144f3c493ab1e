"""The NaN/Inf check that follows every forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from virnucpro_pl.errors import MAX_LISTED, ExpectedError, listed

FINE, RECOMPUTED, FAILED = 0, 1, 2
"""Outcome of a sequence: finite, finite only after it was computed again in FP32, none."""


class NumericalInstabilityError(ExpectedError, RuntimeError):
    """Embeddings hold NaN or Inf.

    Attributes:
        sequence_ids: Exactly the sequences that are not finite; empty while nobody has named them.
        nan_count: Number of NaN elements.
        inf_count: Number of infinite elements.
    """

    exit_code = 3

    def __init__(
        self,
        message: str,
        *,
        nan_count: int = 0,
        inf_count: int = 0,
        sequence_ids: Sequence[str] = (),
    ) -> None:
        """Keep the counts and ids beside the message.

        Args:
            message: What was found; the first ids are appended to it.
            nan_count: Number of NaN elements.
            inf_count: Number of infinite elements.
            sequence_ids: Sequences that are not finite.
        """
        self.sequence_ids = list(sequence_ids)
        self.nan_count = nan_count
        self.inf_count = inf_count
        if self.sequence_ids:
            n = len(self.sequence_ids)
            message = f"{message} Sequences ({n}): {listed(self.sequence_ids, MAX_LISTED)}"
        super().__init__(message)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with counts and ids, since the message already carries the ids."""
        state = {
            "sequence_ids": self.sequence_ids,
            "nan_count": self.nan_count,
            "inf_count": self.inf_count,
        }
        return (NumericalInstabilityError, (str(self),), state)


def are_finite(*tensors: Tensor) -> Tensor:
    """Whether no element of any tensor is NaN or infinite: () bool, on the device, not waited for.

    On a GPU the answer travels with the results (see `lookahead`); `bool` of it would wait.
    """
    return torch.stack([_is_finite(tensor) for tensor in tensors]).all()


def _is_finite(tensor: Tensor) -> Tensor:
    """One pass over the tensor, where `isfinite(...).all()` takes several."""
    if not tensor.numel():
        return tensor.new_ones((), dtype=torch.bool)
    low, high = torch.aminmax(tensor)  # where there is a NaN, it is both
    return (low > -torch.inf) & (high < torch.inf)


def check_numerical_stability(embeddings: Tensor, context: str = "embeddings") -> None:
    """Raise if any element is NaN or infinite.

    On healthy data this is one pass over the tensor and one device synchronisation; counts and
    range are computed only after a fault.

    Args:
        embeddings: Floating-point tensor of any shape, on any device.
        context: What the tensor is, for the message.

    Raises:
        NumericalInstabilityError: With both counts, without sequence ids.
    """
    if are_finite(embeddings):
        return
    raise describe_instability(embeddings, context)


def describe_instability(
    embeddings: Tensor, context: str, sequence_ids: Sequence[str] = (), hint: str = ""
) -> NumericalInstabilityError:
    """Build the error for a tensor that is known to hold NaN or Inf.

    Args:
        embeddings: Floating-point tensor of any shape with at least one element not finite.
        context: What the tensor is, for the message.
        sequence_ids: The sequences concerned, where the caller knows them.
        hint: What else can be done, for the end of the message.

    Returns:
        The error, not raised.
    """
    nan_count = int(embeddings.isnan().sum())
    inf_count = int(embeddings.isinf().sum())
    finite = embeddings[embeddings.isfinite()].float()
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (float("nan"),) * 2
    return NumericalInstabilityError(
        f"Numerical instability in {context}: NaN={nan_count}, Inf={inf_count}, "
        f"valid range=[{low:.2e}, {high:.2e}]. {_advice(embeddings.dtype)}{hint}",
        nan_count=nan_count,
        inf_count=inf_count,
        sequence_ids=sequence_ids,
    )


def _advice(dtype: torch.dtype) -> str:
    autocast = any(torch.is_autocast_enabled(device) for device in ("cuda", "cpu"))
    if autocast or dtype in (torch.float16, torch.bfloat16):
        return "Set VIRNUCPRO_DISABLE_FP16=1 to run in FP32."
    return (
        "These numbers are already FP32 or wider, so VIRNUCPRO_DISABLE_FP16=1 changes nothing: "
        "the weights or the input are at fault."
    )


def each_outcome(outcome: Tensor | None, count: int) -> Tensor:
    """Outcome (N,) uint8 of each of `count` sequences, where None stands for all fine."""
    return torch.full((count,), FINE, dtype=torch.uint8) if outcome is None else outcome
