"""A Triton kernel for rotary position embedding, in one pass over memory."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_ROWS = 32
"""Heads of queries and keys in a block; with 4 warps as fast as a copy on an H200."""


# Not specialized: every other length would compile it again.
@triton.jit(do_not_specialize=["tokens"])  # type: ignore[untyped-decorator]
def _rotate(  # type: ignore[no-untyped-def]
    qkv_ptr, cos_ptr, sin_ptr, tokens,
    HEADS: tl.constexpr, HALF: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """One block of heads, of queries and keys alike."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = (row // (2 * HEADS)).to(tl.int64)
    head = row % (2 * HEADS)
    pair = tl.arange(0, PADDED)
    inside = (token < tokens)[:, None] & (pair < HALF)[None, :]
    angle = token[:, None] * HALF + pair[None, :]
    cos = tl.load(cos_ptr + angle, mask=inside, other=0.0)
    sin = tl.load(sin_ptr + angle, mask=inside, other=0.0)
    place = token[:, None] * (3 * HEADS * 2 * HALF) + head[:, None] * (2 * HALF) + pair[None, :]
    first = tl.load(qkv_ptr + place, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(qkv_ptr + place + HALF, mask=inside, other=0.0).to(tl.float32)
    dtype = qkv_ptr.dtype.element_ty
    tl.store(qkv_ptr + place, (first * cos - second * sin).to(dtype), mask=inside)
    tl.store(qkv_ptr + place + HALF, (second * cos + first * sin).to(dtype), mask=inside)


def rotate_in_place(qkv: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Overwrite queries and keys with their rotary embedding, computed in FP32.

    Args:
        qkv: (T, 3, H, K) queries, keys and values on a GPU, contiguous.
        cos: (T, K/2) cosines of the angles, in fp32, contiguous.
        sin: (T, K/2) sines.
    """
    tokens, _, heads, width = qkv.shape
    half = width // 2
    _rotate[(triton.cdiv(tokens * 2 * heads, _ROWS),)](
        qkv, cos, sin, tokens,
        HEADS=heads, HALF=half, PADDED=triton.next_power_of_2(half), ROWS=_ROWS, num_warps=4,
    )  # fmt: skip
