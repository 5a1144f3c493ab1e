"""Self-attention within each sequence of a pack, one meaning on every backend.

Shapes: N sequences in a pack, T tokens in a pack, H heads, K head width.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn

from virnucpro_pl.precision import env_switch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Attention", "Layout", "attend", "choose_attention", "lay_out"]

log = logging.getLogger(__name__)

Attention = Literal["auto", "varlen", "sdpa"]
PACKING_SWITCH = "VIRNUCPRO_DISABLE_PACKING"


class Layout(NamedTuple):
    """Where the sequences of a pack lie, in the form that one backend needs; same for all layers."""

    backend: str
    """`varlen` or `sdpa`."""
    cu_seqlens: Tensor
    """(N+1,) int32: start of each sequence in the pack, then T."""
    max_seqlen: int
    """Tokens of the longest sequence, or more."""
    position: Tensor
    """(T,) int64: index of each token within its sequence."""
    padded: Tensor | None
    """sdpa: (N, L) int64, the token of each padded place; places past the end hold token 0."""
    mask: Tensor | None
    """sdpa: (N, 1, 1, L) bool, true where a place holds a token; None if every place does."""
    unpadded: Tensor | None
    """sdpa: (T,) int64: the place of each token among the N*L padded ones."""


def choose_attention(asked: Attention, *, device: torch.device, reduced: bool) -> str:
    """Pick the backend and log the choice.

    Args:
        asked: The user's wish; `auto` takes `varlen` wherever it runs.
        device: Where the model runs.
        reduced: Whether attention computes in FP16 or BF16.

    Returns:
        `varlen` or `sdpa`.

    Raises:
        UsageError: If `VIRNUCPRO_DISABLE_PACKING` holds a word that is neither on nor off.
    """
    able = device.type == "cuda" and reduced
    why = "asked for"
    backend = asked
    if env_switch(PACKING_SWITCH):
        backend, why = "sdpa", f"{PACKING_SWITCH} is on"
    elif asked == "auto":
        backend, why = ("varlen" if able else "sdpa"), f"auto on {device.type}"
    elif asked == "varlen" and not able:
        backend, why = "sdpa", "varlen needs a GPU and FP16 or BF16"
    log.info("Attention: %s (%s)", backend, why)
    return backend


def lay_out(cu_seqlens: Tensor, max_seqlen: int, tokens: int, backend: str) -> Layout:
    """Prepare a pack's layout once for all layers, without a device synchronisation.

    Args:
        cu_seqlens: (N+1,) int32 starts of the sequences, then T.
        max_seqlen: Tokens of the longest sequence.
        tokens: T.
        backend: `varlen` or `sdpa`.
    """
    device = cu_seqlens.device
    starts, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
    sequence = torch.repeat_interleave(lengths, output_size=tokens)
    token = torch.arange(tokens, device=device)
    position = token - starts[sequence]
    if backend == "varlen":
        return Layout(backend, cu_seqlens, max_seqlen, position, None, None, None)
    place = torch.arange(max_seqlen, device=device)
    filled = place < lengths[:, None]
    padded = torch.where(filled, starts[:, None] + place, 0)
    mask = None if len(starts) == 1 else filled[:, None, None]
    unpadded = sequence * max_seqlen + position
    return Layout(backend, cu_seqlens, max_seqlen, position, padded, mask, unpadded)


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
        cu, longest = layout.cu_seqlens, layout.max_seqlen
        return varlen_attn(query, key, value, cu, cu, longest, longest)  # type: ignore[return-value]
    assert layout.padded is not None and layout.unpadded is not None
    q, k, v = (x[layout.padded].transpose(1, 2) for x in (query, key, value))  # (N, H, L, K)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=layout.mask)
    return out.transpose(1, 2).flatten(0, 1)[layout.unpadded]  # (N*L, H, K) -> (T, H, K)
