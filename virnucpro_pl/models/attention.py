"""Self-attention within each sequence of a pack, one meaning on every backend.

Scores may have a bias that falls with the distance of two tokens, symmetric ALiBi (Press et al.
2022, arXiv:2108.12409; for both directions in MosaicBERT, Portes et al. 2023, arXiv:2312.17482).
Shapes: N sequences in a pack, T tokens in a pack, H heads, K head width; n sequences in a group of
similar length, L tokens of its longest.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from virnucpro_pl.errors import UsageError
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
    "sdpa": "PyTorch's own, sequence by sequence",
}
_LEAST_FILL = 0.75
"""Share of a group's longest sequence that its shortest has at least."""
_BIAS_ELEMENTS = 1 << 23
"""Scores (n, H, queries, L) for which bias and mask are held at once; 32 MiB in fp32."""


class Group(NamedTuple):
    """Sequences of similar length, padded to the longest of them."""

    padded: Tensor
    """(n, L) int64, the token of each padded place; places past the end hold its first one."""
    mask: Tensor | None
    """(n, 1, 1, L) bool, true where a place holds a token; None if every place does."""


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
    groups: tuple[Group, ...]
    """sdpa: the sequences, each in one group."""
    unpadded: Tensor | None
    """sdpa: (T,) int64: the place of each token among the padded places of all groups."""


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
    layout = Layout(backend, cu_seqlens, max_seqlen, position, slopes, (), None)
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
    place = torch.arange(longest, device=query.device, dtype=torch.float32)
    out = []
    for q, rows in zip(torch.split(query, step, dim=2), torch.split(place, step), strict=True):
        bias = (rows[:, None] - place).abs() * -slopes[:, None, None]  # (H, queries, L) fp32
        if mask is not None:
            bias = bias.masked_fill(~mask, float("-inf"))  # (n, H, queries, L)
        bias = bias.to(q.dtype).expand(n, -1, -1, -1)
        out.append(F.scaled_dot_product_attention(q, key, value, attn_mask=bias))
    return torch.cat(out, dim=2)
