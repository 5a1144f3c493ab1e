"""Self-attention within each sequence of a pack, one meaning on every backend.

Scores may have a bias that falls with the distance of two tokens, symmetric ALiBi (Press et al.
2022, arXiv:2108.12409; for both directions in MosaicBERT, Portes et al. 2023, arXiv:2312.17482).
Shapes: N sequences in a pack, T tokens in a pack, H heads, K head width; n sequences in a group of
similar length, L tokens of its longest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.attention.varlen import varlen_attn

from virnucpro_pl.errors import UsageError
from virnucpro_pl.precision import env_switch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Attention",
    "BiasedAttention",
    "Layout",
    "attend",
    "choose_attention",
    "lay_out",
]

log = logging.getLogger(__name__)

Attention = Literal["auto", "varlen", "sdpa"]
BiasedAttention = Literal["auto", "flex", "sdpa"]
PACKING_SWITCH = "VIRNUCPRO_DISABLE_PACKING"
_FLEX_BLOCK = 128
"""Tokens of a block of queries or keys in FlexAttention's mask."""
_LEAST_FILL = 0.75
"""Share of a group's longest sequence that its shortest has at least."""
_BIAS_ELEMENTS = 1 << 25
"""Scores (n, H, queries, L) for which bias and mask are held at once; 128 MiB in fp32."""


class Group(NamedTuple):
    """Sequences of similar length, padded to the longest of them."""

    padded: Tensor
    """(n, L) int64, the token of each padded place; places past the end hold its first one."""
    mask: Tensor | None
    """(n, 1, 1, L) bool, true where a place holds a token; None if every place does."""


class Layout(NamedTuple):
    """Where the sequences of a pack lie, in the form one backend needs; same for all layers."""

    backend: str
    """`varlen`, `flex` or `sdpa`."""
    cu_seqlens: Tensor
    """(N+1,) int32: start of each sequence in the pack, then T."""
    max_seqlen: int
    """Tokens of the longest sequence, or more."""
    position: Tensor
    """(T,) int64: index of each token within its sequence."""
    slopes: Tensor | None
    """(H,) fp32: score bias per token of distance, as a positive number; None without a bias."""
    groups: tuple[Group, ...]
    """sdpa: the sequences, each in one group."""
    unpadded: Tensor | None
    """sdpa: (T,) int64: the place of each token among the padded places of all groups."""
    block_mask: BlockMask | None
    """flex: the blocks of queries and keys that share a sequence."""


def choose_attention(
    asked: Attention | BiasedAttention,
    *,
    device: torch.device,
    reduced: bool,
    packed: Literal["varlen", "flex"] = "varlen",
) -> str:
    """Pick the backend and log the choice.

    Args:
        asked: The user's wish; `auto` takes the packed backend wherever it runs.
        device: Where the model runs.
        reduced: Whether attention computes in FP16 or BF16.
        packed: The model's packed backend: `flex` if its scores have a bias, else `varlen`.

    Returns:
        `varlen`, `flex` or `sdpa`.

    Raises:
        UsageError: If the model has no such backend, or `VIRNUCPRO_DISABLE_PACKING` holds a word
            that is neither on nor off.
    """
    if asked not in ("auto", packed, "sdpa"):
        raise UsageError(f"This model's attention is auto, {packed} or sdpa, not {asked}")
    able = device.type == "cuda" and reduced
    why = "asked for"
    backend = asked
    if env_switch(PACKING_SWITCH):
        backend, why = "sdpa", f"{PACKING_SWITCH} is on"
    elif asked == "auto":
        backend, why = (packed if able else "sdpa"), f"auto on {device.type}"
    elif asked == packed and not able:
        backend, why = "sdpa", f"{packed} needs a GPU and FP16 or BF16"
    log.info("Attention: %s (%s)", backend, why)
    return backend


def lay_out(
    cu_seqlens: Tensor, max_seqlen: int, tokens: int, backend: str, slopes: Tensor | None = None
) -> Layout:
    """Prepare a pack's layout once for all layers; only `sdpa` waits for the device.

    Args:
        cu_seqlens: (N+1,) int32 starts of the sequences, then T.
        max_seqlen: Tokens of the longest sequence.
        tokens: T.
        backend: `varlen`, `flex` or `sdpa`.
        slopes: (H,) fp32 ALiBi slopes, positive; None without a bias.
    """
    starts, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
    sequence = torch.repeat_interleave(lengths, output_size=tokens)
    position = torch.arange(tokens, device=cu_seqlens.device) - starts[sequence]
    layout = Layout(backend, cu_seqlens, max_seqlen, position, slopes, (), None, None)
    if backend == "flex":
        return layout._replace(block_mask=_block_mask(cu_seqlens, sequence))
    if backend == "sdpa":
        heads = 0 if slopes is None else len(slopes)
        groups, unpadded = _group(starts, lengths, sequence, position, heads)
        return layout._replace(groups=groups, unpadded=unpadded)
    return layout


def _group(
    starts: Tensor, lengths: Tensor, sequence: Tensor, position: Tensor, biased_heads: int
) -> tuple[tuple[Group, ...], Tensor]:
    """Pad sequences of similar length together; the groups, and where each token lies in them."""
    ordered, order = lengths.sort(descending=True, stable=True)
    place_of = torch.empty_like(lengths)  # (N,) first padded place of each sequence
    groups: list[Group] = []
    places = 0
    for cut in _similar(ordered.tolist(), biased_heads):
        members, longest = order[cut.start : cut.stop], int(ordered[cut.start])
        place = torch.arange(longest, device=lengths.device)
        filled = place < lengths[members, None]
        # Places past the end repeat a token of their own sequence: a masked NaN of another would
        # still come through, as 0 times NaN.
        padded = starts[members, None] + torch.where(filled, place, 0)  # (n, L)
        even = int(ordered[cut.stop - 1]) == longest
        groups.append(Group(padded, None if even else filled[:, None, None]))
        place_of[members] = places + longest * torch.arange(len(cut), device=lengths.device)
        places += padded.numel()
    return tuple(groups), place_of[sequence] + position


def _similar(lengths: list[int], biased_heads: int) -> Iterator[range]:
    """Cut falling lengths where one is too short for its group's first, or the bias too large."""
    start = 0
    for i in range(1, len(lengths) + 1):
        longest = lengths[start]
        full = (i + 1 - start) * biased_heads * longest**2 > _BIAS_ELEMENTS
        if i == len(lengths) or full or lengths[i] < _LEAST_FILL * longest:
            yield range(start, i)
            start = i


def _block_mask(cu_seqlens: Tensor, sequence: Tensor) -> BlockMask:
    """Blocks of keys that each block of queries needs: those between its outermost sequences' ends.

    Sequences lie one behind the other, so these blocks are consecutive, and `create_block_mask`'s
    look at all T * T pairs is not needed.
    """
    tokens = len(sequence)
    first = torch.arange(0, tokens, _FLEX_BLOCK, device=sequence.device)  # (B,) of each query block
    last = (first + _FLEX_BLOCK - 1).clamp(max=tokens - 1)
    low = cu_seqlens[sequence[first]].div(_FLEX_BLOCK, rounding_mode="floor")
    high = (cu_seqlens[sequence[last] + 1] - 1).div(_FLEX_BLOCK, rounding_mode="floor")
    blocks = torch.arange(len(first), device=sequence.device, dtype=torch.int32)
    indices = (low[:, None] + blocks).clamp(max=len(first) - 1)  # (B, B), rows used up to `counts`
    counts = high - low + 1

    def same_sequence(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return sequence[query] == sequence[key]

    return BlockMask.from_kv_blocks(
        counts.int()[None, None],
        indices.int()[None, None].contiguous(),
        BLOCK_SIZE=_FLEX_BLOCK,
        mask_mod=same_sequence,
        seq_lengths=(tokens, tokens),
        compute_q_blocks=False,  # only a backward pass reads them
    )


def attend(query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> Tensor:
    """Scaled dot-product attention of every token to all tokens of its own sequence.

    Args:
        query: (T, H, K); key and value alike.
        key: (T, H, K).
        value: (T, H, K).
        layout: From `lay_out`, made for the same pack.

    Returns:
        (T, H, K) in the dtype of `query`.
    """
    if layout.backend == "varlen":
        assert layout.slopes is None, "varlen has no bias"
        cu, longest = layout.cu_seqlens, layout.max_seqlen
        return varlen_attn(query, key, value, cu, cu, longest, longest)  # type: ignore[return-value]
    if layout.backend == "flex":
        return _attend_flex(query, key, value, layout)
    assert layout.unpadded is not None
    parts = []
    for group in layout.groups:
        q, k, v = (x[group.padded].transpose(1, 2) for x in (query, key, value))  # (n, H, L, K)
        if layout.slopes is None:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=group.mask)
        else:
            out = _attend_biased(q, k, v, group.mask, layout.slopes)
        parts.append(out.transpose(1, 2).flatten(0, 1))  # (n*L, H, K)
    return torch.cat(parts)[layout.unpadded]  # (T, H, K)


def _attend_biased(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, slopes: Tensor
) -> Tensor:
    """Padded attention (n, H, L, K) with ALiBi, as many queries at a time as the bias may be large.

    One row of scores does not depend on another, so the cut changes nothing but the memory.
    """
    n, heads, longest, _ = query.shape
    step = max(1, _BIAS_ELEMENTS // (n * heads * longest))
    place = torch.arange(longest, device=query.device)
    out = []
    for q, rows in zip(torch.split(query, step, dim=2), torch.split(place, step), strict=True):
        bias = -slopes[:, None, None] * (rows[:, None] - place).abs()  # (H, queries, L) fp32
        if mask is not None:
            bias = bias.masked_fill(~mask, float("-inf"))  # (n, H, queries, L)
        bias = bias.to(q.dtype).expand(n, -1, -1, -1)
        out.append(F.scaled_dot_product_attention(q, key, value, attn_mask=bias))
    return torch.cat(out, dim=2)


def _attend_flex(query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> Tensor:
    """Packed attention; within a sequence the distance of two places in the pack is their own."""
    slopes = layout.slopes

    def biased(score: Tensor, batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        assert slopes is not None
        return score - slopes[head] * (q - k).abs()

    q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))  # (1, H, T, K)
    score_mod = None if slopes is None else biased
    out = _compiled_flex()(q, k, v, score_mod=score_mod, block_mask=layout.block_mask)
    return out[0].transpose(0, 1)  # (T, H, K)


@lru_cache(1)
def _compiled_flex() -> Callable[..., Tensor]:
    """Compiled once for all models: uncompiled, it would hold all T * T scores."""
    return torch.compile(flex_attention)
