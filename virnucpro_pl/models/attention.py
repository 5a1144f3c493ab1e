"""Self-attention within each sequence of a pack, one meaning on every backend.

Scores may have a bias that falls with the distance of two tokens, symmetric ALiBi (Press et al.
2022, arXiv:2108.12409; for both directions in MosaicBERT, Portes et al. 2023, arXiv:2312.17482).
Shapes: N sequences in a pack, T tokens in a pack, H heads, K head width.
"""

from __future__ import annotations

import logging
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from virnucpro_pl.errors import UsageError
from virnucpro_pl.models.padded_attention import Padding, pad, padded_attention
from virnucpro_pl.switches import env_switch

log = logging.getLogger(__name__)

Attention = Literal["auto", "triton", "varlen", "sdpa"]
BiasedAttention = Literal["auto", "triton", "sdpa"]
PACKING_SWITCH = "VIRNUCPRO_DISABLE_PACKING"
PACKED_CAPABILITY = (8, 0)
"""Compute capability from which on there are packed kernels: Triton compiles for no older GPU, and
FlashAttention, which is what `varlen` runs, neither."""
_IN_WORDS = {
    "triton": "kernels of this package for sequences one behind the other",
    "varlen": "PyTorch's kernels for sequences one behind the other",
    "sdpa": "PyTorch's own, over sequences of similar length",
}


class Layout(NamedTuple):
    """Where the sequences of a pack lie, in the form one backend needs; same for all layers."""

    backend: str
    """`triton`, `varlen` or `sdpa`."""
    cu_seqlens: Tensor
    """(N+1,) int32: start of each sequence in the pack, then T."""
    max_seqlen: int
    """Tokens of the longest sequence, or more."""
    position: Tensor
    """(T,) int64: index of each token within its sequence."""
    slopes: Tensor | None
    """(H,) fp32: score bias per token of distance, as a positive number; None without a bias."""
    padding: Padding | None
    """sdpa: the sequences in groups of similar length."""


def check_attention(asked: str, *, biased: bool) -> None:
    """Refuse a backend that a model does not have.

    Raises:
        UsageError: With those that it has.
    """
    known = get_args(BiasedAttention if biased else Attention)
    if asked not in known:
        raise UsageError(f"This model's attention is one of {', '.join(known)}, not {asked}")


class Card(NamedTuple):
    """A GPU."""

    name: str
    capability: tuple[int, int]
    """Compute capability, such as (8, 0)."""


def find_card(device: torch.device) -> Card | None:
    """The GPU that a device is; None for a CPU."""
    if device.type != "cuda":
        return None
    return Card(torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device))


def _obstacle(device: torch.device) -> str | None:
    """Why the packed kernels cannot run on a device, in words; None where they can."""
    card = find_card(device)
    if card is None:
        return f"packed kernels need a GPU, and this runs on {device.type}"
    if card.capability >= PACKED_CAPABILITY:
        return None
    has, needed = (".".join(map(str, c)) for c in (card.capability, PACKED_CAPABILITY))
    return f"{card.name} has compute capability {has}, packed kernels need {needed}"


def check_device(asked: str, device: torch.device) -> None:
    """Refuse a packed kernel where the device cannot run it, whatever the precision.

    Raises:
        UsageError: With what the device lacks.
    """
    if asked in ("auto", "sdpa") or env_switch(PACKING_SWITCH):
        return
    if obstacle := _obstacle(device):
        raise UsageError(
            f"Attention {asked} cannot run here, {obstacle}: give the model's attention as sdpa or "
            "auto"
        )


def choose_attention(
    asked: Attention | BiasedAttention,
    *,
    device: torch.device,
    reduced: bool,
    biased: bool = False,
) -> str:
    """Pick the backend and log the choice.

    In FP32 a packed kernel that was asked for gives way: the switch to FP32 must not make a command
    fail.

    Args:
        asked: The user's wish; `auto` takes the packed kernel wherever it runs.
        device: Where the model runs.
        reduced: Whether attention computes in FP16 or BF16.
        biased: Whether the model's scores have a bias, which `varlen` does not know.

    Returns:
        `triton`, `varlen` or `sdpa`.

    Raises:
        UsageError: If the model has no such backend, the device cannot run it, or
            `VIRNUCPRO_DISABLE_PACKING` holds a word that is neither on nor off.
    """
    check_attention(asked, biased=biased)
    check_device(asked, device)
    backend, why = "sdpa", "asked for"
    if env_switch(PACKING_SWITCH):
        why = f"{PACKING_SWITCH} is on"
    elif asked != "sdpa":
        if obstacle := _obstacle(device):
            why = f"{asked}: {obstacle}"
        elif not reduced:
            why = f"{asked}: packed kernels need FP16 or BF16"
        else:
            backend, why = ("triton", "auto") if asked == "auto" else (asked, "asked for")
    log.info("Attention: %s, %s (%s)", backend, _IN_WORDS[backend], why)
    return backend


def lay_out(
    cu_seqlens: Tensor, max_seqlen: int, tokens: int, backend: str, slopes: Tensor | None = None
) -> Layout:
    """Prepare a pack's layout once for all layers; only `sdpa` waits for the device.

    Args:
        cu_seqlens: (N+1,) int32 starts of the sequences, then T.
        max_seqlen: Tokens of the longest sequence.
        tokens: T.
        backend: `triton`, `varlen` or `sdpa`.
        slopes: (H,) fp32 ALiBi slopes, positive; None without a bias.
    """
    starts, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
    sequence = torch.repeat_interleave(lengths, output_size=tokens)
    position = torch.arange(tokens, device=cu_seqlens.device) - starts[sequence]
    padding = None
    if backend == "sdpa":
        padding = pad(cu_seqlens, 0 if slopes is None else len(slopes))
    return Layout(backend, cu_seqlens, max_seqlen, position, slopes, padding)


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
    cu, longest = layout.cu_seqlens, layout.max_seqlen
    if layout.backend == "triton":
        from virnucpro_pl.models.triton_attention import packed_attention  # no Triton without a GPU

        return packed_attention(query, key, value, cu, longest, layout.slopes)
    if layout.backend == "varlen":
        assert layout.slopes is None, "varlen has no bias"
        return varlen_attn(query, key, value, cu, cu, longest, longest)  # type: ignore[return-value]
    assert layout.padding is not None
    return padded_attention(query, key, value, layout.padding, layout.slopes)
