"""Triton kernels for a residual sum and the LayerNorm of it, in one pass over memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor, nn


@triton.jit  # type: ignore[untyped-decorator]
def _add_then_norm(  # type: ignore[no-untyped-def]
    x_ptr, delta_ptr, weight_ptr, bias_ptr, kept_ptr, out_ptr, epsilon,
    KEEPS_SUM: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """One row; beside its norm in `out`, `kept` gets the sum, or the norm in another dtype."""
    row = tl.program_id(0).to(tl.int64) * WIDTH
    place = tl.arange(0, PADDED)
    inside = place < WIDTH
    x = tl.load(x_ptr + row + place, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(delta_ptr + row + place, mask=inside, other=0.0).to(tl.float32)
    if KEEPS_SUM:
        rounded = x.to(kept_ptr.dtype.element_ty)
        tl.store(kept_ptr + row + place, rounded, mask=inside)
        x = rounded.to(tl.float32)
    apart = tl.where(inside, x - tl.sum(x, 0) / WIDTH, 0.0)
    scale = tl.rsqrt(tl.sum(apart * apart, 0) / WIDTH + epsilon)
    weight = tl.load(weight_ptr + place, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + place, mask=inside, other=0.0).to(tl.float32)
    out = apart * scale * weight + bias
    if not KEEPS_SUM:
        tl.store(kept_ptr + row + place, out.to(kept_ptr.dtype.element_ty), mask=inside)
    tl.store(out_ptr + row + place, out.to(out_ptr.dtype.element_ty), mask=inside)


def add_then_norm(x: Tensor, delta: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """A residual sum and its LayerNorm, both computed in FP32.

    Args:
        x: (T, D) on a GPU, contiguous.
        delta: (T, D) FP16 or BF16, contiguous.
        norm: Over D.

    Returns:
        (T, D) sum in the dtype of `x`, (T, D) norm in that of `delta`.
    """
    return _launch(x, delta, norm, keeps_sum=True)


def norm_of_sum(x: Tensor, delta: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """The LayerNorm of a residual sum, computed in FP32 and rounded to two dtypes.

    Args:
        x: (T, D) on a GPU, contiguous.
        delta: (T, D) FP16 or BF16, contiguous.
        norm: Over D.

    Returns:
        (T, D) norm in the dtype of `x`, (T, D) in that of `delta`.
    """
    return _launch(x, delta, norm, keeps_sum=False)


def _launch(
    x: Tensor, delta: Tensor, norm: nn.LayerNorm, *, keeps_sum: bool
) -> tuple[Tensor, Tensor]:
    kept, out = torch.empty_like(x), torch.empty_like(delta)
    rows, width = x.shape
    padded = triton.next_power_of_2(width)
    _add_then_norm[(rows,)](
        x, delta, norm.weight, norm.bias, kept, out, norm.eps, KEEPS_SUM=keeps_sum,
        WIDTH=width, PADDED=padded, num_warps=max(1, min(16, padded // 512)),
    )  # fmt: skip
    return kept, out
