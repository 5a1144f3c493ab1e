"""Attention by PyTorch's own operation, over sequences of similar length, padded together.

Shapes: N sequences in a pack, T tokens in a pack, H heads, K head width; n sequences in a group of
similar length, L tokens of its longest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_LEAST_FILL = 0.75
"""Share of a group's longest sequence that its shortest has at least."""
_BIAS_ELEMENTS = 1 << 23
"""Scores (n, H, queries, L) for which bias and mask are held at once; 32 MiB in fp32."""


class Group(NamedTuple):
    """Sequences of similar length, padded to the longest of them."""

    tokens: Tensor | slice
    """(n*L,) int64, the token of each padded place; places past the end hold the first one of their
    sequence. A slice of the pack where the group is one, without padding."""
    size: int
    """n."""
    mask: Tensor | None
    """(n, 1, 1, L) bool, true where a place holds a token; None if every place does."""

    def take(self, x: Tensor) -> Tensor:
        """The group's part (n, H, L, K) of x (T, H, K)."""
        return x[self.tokens].view(self.size, -1, *x.shape[1:]).transpose(1, 2)


class Padding(NamedTuple):
    """The sequences of a pack in groups; same for all layers."""

    groups: tuple[Group, ...]
    """Each sequence is in one of them."""
    places: Tensor | None
    """(T,) int64 place of each token among the padded places of all groups; None if that is its
    place in the pack."""


def pad(cu_seqlens: Tensor, biased_heads: int) -> Padding:
    """Group sequences of similar length; waits for the device.

    Args:
        cu_seqlens: (N+1,) int32 starts of the sequences, then T.
        biased_heads: H if there is a bias, of which not too much is to be held at once; 0 if not.
    """
    starts: list[int] = cu_seqlens.tolist()
    lengths = [end - start for start, end in pairwise(starts)]
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    groups: list[Group] = []
    places = torch.empty(starts[-1], dtype=torch.int64)
    done = 0
    for cut in _similar([lengths[i] for i in order], biased_heads):
        members = order[cut.start : cut.stop]
        first, longest = members[0], lengths[members[0]]
        even = lengths[members[-1]] == longest
        size = len(members) * longest
        if even and members == list(range(first, first + len(members))):
            slot = slice(starts[first], starts[first] + size)
            groups.append(Group(slot, len(members), None))
            places[slot] = torch.arange(done, done + size)
        else:
            begins = torch.tensor([starts[i] for i in members])[:, None]
            place = torch.arange(longest)
            filled = place < torch.tensor([lengths[i] for i in members])[:, None]
            # Places past the end repeat a token of their own sequence: a masked NaN of another
            # would still come through, as 0 times NaN.
            tokens = (begins + torch.where(filled, place, 0)).flatten().to(cu_seqlens.device)
            mask = None if even else filled[:, None, None].to(cu_seqlens.device)
            groups.append(Group(tokens, len(members), mask))
            places[(begins + place)[filled]] = torch.arange(done, done + size)[filled.flatten()]
        done += size
    in_order = done == len(places) and torch.equal(places, torch.arange(done))
    return Padding(tuple(groups), None if in_order else places.to(cu_seqlens.device))


def _similar(lengths: list[int], biased_heads: int) -> Iterator[range]:
    """Cut falling lengths where one is too short for its group's first, or the bias too large."""
    start = 0
    for i in range(1, len(lengths) + 1):
        longest = lengths[start]
        full = (i + 1 - start) * biased_heads * longest**2 > _BIAS_ELEMENTS
        if i == len(lengths) or full or lengths[i] < _LEAST_FILL * longest:
            yield range(start, i)
            start = i


def padded_attention(
    query: Tensor, key: Tensor, value: Tensor, padding: Padding, slopes: Tensor | None
) -> Tensor:
    """Attention of every token to all tokens of its own sequence.

    Args:
        query: (T, H, K); key and value alike.
        key: (T, H, K).
        value: (T, H, K).
        padding: From `pad`, made for the same pack.
        slopes: (H,) fp32 ALiBi slopes, positive; None without a bias.

    Returns:
        (T, H, K) in the dtype of `query`.
    """
    with _without_cudnn():
        parts = [_attend(group, query, key, value, slopes) for group in padding.groups]
    attended = parts[0] if len(parts) == 1 else torch.cat(parts)
    return attended if padding.places is None else attended[padding.places]


@contextmanager
def _without_cudnn() -> Iterator[None]:
    """Keep PyTorch from cuDNN's attention, which is planned anew for each shape.

    Here shapes differ from pack to pack: on an H200 a proteome took 1.7 times as long with it.
    """
    was_on = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(was_on)


def _attend(
    group: Group, query: Tensor, key: Tensor, value: Tensor, slopes: Tensor | None
) -> Tensor:
    """Attention of one group's tokens, (n*L, H, K)."""
    q, k, v = (group.take(x) for x in (query, key, value))
    if slopes is None:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=group.mask)
    else:
        out = _attend_biased(q, k, v, group.mask, slopes)
    return out.transpose(1, 2).flatten(0, 1)


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
