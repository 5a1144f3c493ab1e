"""The mean of each sequence's hidden states."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pool(hidden: Tensor, pool_tokens: Tensor, pool_offsets: Tensor) -> Tensor:
    """Mean over chosen tokens of each sequence, summed in fp32.

    Each sum reads its own tokens only, so that a NaN stays within its sequence, and in a fixed
    order, so that the result does not depend on the run.

    Args:
        hidden: (T, D) in any floating-point dtype.
        pool_tokens: (P,) int64 tokens that go into the means.
        pool_offsets: (N+1,) int64 start of each sequence in `pool_tokens`, then P.

    Returns:
        (N, D) fp32.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        return F.embedding_bag(
            pool_tokens, hidden.float(), pool_offsets, mode="mean", include_last_offset=True
        )
