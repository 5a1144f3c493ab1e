"""A Triton kernel for attention over packed short sequences, with or without ALiBi.

FlashAttention's blocks are made for long sequences: of one with 168 tokens they compute more than
twice the scores that there are. The online softmax is that of Dao et al. 2022 (arXiv:2205.14135).
A sequence's result does not depend on what else is in the pack.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_LOG2_E = 1.4426950408889634
_KEYS = 64
"""Keys of a block; with 4 warps and 3 stages the fastest on an H200 for all lengths and widths of
these models, or within a tenth of it."""
_SHORT = 256
"""Rows to a sequence, on average, up to which blocks of 64 queries are faster than those of 128.
What a row gets is the same in either."""


@triton.jit  # type: ignore[untyped-decorator]
def _attend(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, out_ptr, cu_ptr, slopes_ptr,
    q_token, q_head, k_token, k_head, v_token, v_head, out_token, out_head,
    scale,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, BIASED: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One block of queries of one sequence and head, against all keys of that sequence."""
    head = tl.program_id(0) % HEADS
    sequence = tl.program_id(0) // HEADS  # not an axis of its own, which ends at 65,535
    first = tl.program_id(1) * QUERIES
    start = tl.load(cu_ptr + sequence).to(tl.int64)
    length = (tl.load(cu_ptr + sequence + 1) - start).to(tl.int32)
    if first >= length:
        return
    rows = first + tl.arange(0, QUERIES)
    dims = tl.arange(0, PADDED)
    inside = dims < WIDTH
    q = tl.load(
        q_ptr + (start + rows[:, None]) * q_token + head * q_head + dims[None, :],
        mask=(rows[:, None] < length) & inside[None, :],
        other=0.0,
    )
    if BIASED:
        slope = tl.load(slopes_ptr + head) * 1.4426950408889634
    best = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    result = tl.zeros([QUERIES, PADDED], tl.float32)
    for offset in range(0, length, KEYS):
        columns = offset + tl.arange(0, KEYS)
        there = columns < length
        k = tl.load(
            k_ptr + (start + columns[None, :]) * k_token + head * k_head + dims[:, None],
            mask=there[None, :] & inside[:, None],
            other=0.0,
        )
        scores = tl.dot(q, k) * scale  # in units of log 2
        if BIASED:
            scores -= slope * tl.abs(rows[:, None] - columns[None, :]).to(tl.float32)
        scores = tl.where(there[None, :], scores, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        shrink = tl.exp2(best - higher)
        total = total * shrink + tl.sum(weights, 1)
        v = tl.load(
            v_ptr + (start + columns[:, None]) * v_token + head * v_head + dims[None, :],
            mask=there[:, None] & inside[None, :],
            other=0.0,
        )
        result = tl.dot(weights.to(v.dtype), v, result * shrink[:, None])
        best = higher
    result = result / total[:, None]
    tl.store(
        out_ptr + (start + rows[:, None]) * out_token + head * out_head + dims[None, :],
        result.to(out_ptr.dtype.element_ty),
        mask=(rows[:, None] < length) & inside[None, :],
    )


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    slopes: Tensor | None = None,
) -> Tensor:
    """Attention of every token to all tokens of its own sequence.

    Args:
        query: (T, H, K) fp16 or bf16 on a GPU, K elements side by side; key and value alike.
        key: (T, H, K).
        value: (T, H, K).
        cu_seqlens: (N+1,) int32 start of each sequence, then their end.
        max_seqlen: Tokens of the longest sequence, or more.
        slopes: (H,) fp32 ALiBi slopes, positive; None without a bias.

    Returns:
        (T, H, K) like `query`; rows behind the last sequence are not written.
    """
    tokens, heads, width = query.shape
    out = torch.empty((tokens, heads, width), dtype=query.dtype, device=query.device)
    sequences = len(cu_seqlens) - 1
    queries = 64 if tokens <= _SHORT * sequences else 128
    grid = (heads * sequences, triton.cdiv(max_seqlen, queries))
    _attend[grid](
        query, key, value, out, cu_seqlens, slopes,
        *query.stride()[:2], *key.stride()[:2], *value.stride()[:2], *out.stride()[:2],
        width**-0.5 * _LOG2_E,
        HEADS=heads, WIDTH=width, PADDED=max(16, triton.next_power_of_2(width)),
        BIASED=slopes is not None, QUERIES=queries, KEYS=_KEYS, num_warps=4, num_stages=3,
    )  # fmt: skip
    return out
