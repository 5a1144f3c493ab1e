"""A Triton kernel for a matrix product with its activation, so that memory sees the result alone.

The tiles are those of the fastest on an H200 (Hopper), where the kernel takes less time than
cuBLAS and a kernel for the activation do; on other cards nobody has measured it.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from triton.tools.tensor_descriptor import TensorDescriptor

from virnucpro_pl.models.triton_gelu import gelu_formula

_HOPPER = 9
"""Major number of its compute capability."""
_ALIGNED = 8
"""Numbers in half that fill 16 bytes, of which a row must be a multiple for the copy engine."""


class Tile(NamedTuple):
    """How the work is cut."""

    rows: int
    columns: int
    depth: int
    """Of the products that are summed at a time."""
    group: int
    """Tiles below each other that are computed in turn, and share their columns in the cache."""
    flatten: bool
    """Whether the next tile's loads begin before this one's end."""


_GELU = Tile(128, 256, 64, 8, flatten=True)
_GATED = Tile(128, 128, 64, 16, flatten=False)


# Not specialized: every other length would compile it again.
@triton.jit(do_not_specialize=["tokens"])  # type: ignore[untyped-decorator]
def _linear_gelu(  # type: ignore[no-untyped-def]
    x_desc, weight_desc, out_desc, bias_ptr, tokens,
    WIDTH: tl.constexpr, OUT: tl.constexpr, GATED: tl.constexpr, DTYPE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
    FLATTEN: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """Every PROGRAMS-th tile of the output (T, OUT)."""
    high = tl.cdiv(tokens, ROWS)
    wide = tl.cdiv(OUT, COLUMNS)
    for tile in tl.range(tl.program_id(0), high * wide, PROGRAMS, flatten=FLATTEN):
        first = tile // (GROUP * wide) * GROUP
        size = min(high - first, GROUP)
        row = (first + tile % (GROUP * wide) % size) * ROWS
        column = tile % (GROUP * wide) // size * COLUMNS
        result = tl.zeros((ROWS, COLUMNS), tl.float32)
        if GATED:
            value = tl.zeros((ROWS, COLUMNS), tl.float32)
        for depth in range(0, WIDTH, DEPTH):
            x = x_desc.load([row, depth])
            result = tl.dot(x, weight_desc.load([column, depth]).T, result)
            if GATED:
                value = tl.dot(x, weight_desc.load([OUT + column, depth]).T, value)
        if GATED:
            result = gelu_formula(result) * value
        else:
            place = column + tl.arange(0, COLUMNS)
            bias = tl.load(bias_ptr + place, mask=place < OUT, other=0.0).to(tl.float32)
            result = gelu_formula(result + bias[None, :])
        out_desc.store([row, column], result.to(DTYPE))


@functools.cache
def _processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; of the interpreter one."""
    if device.type == "cpu":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@functools.cache
def _is_hopper(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == _HOPPER


def can_fuse(x: Tensor, linear: nn.Linear) -> bool:
    """Whether the kernel is worth its while on this card, and copies such rows; of any x (T, D)."""
    weight = linear.weight
    is_aligned = linear.in_features % _ALIGNED == linear.out_features % (2 * _ALIGNED) == 0
    is_fit = is_aligned and weight.is_contiguous() and weight.dtype == x.dtype
    return is_fit and _is_hopper(x.device)


def linear_gelu(x: Tensor, linear: nn.Linear) -> Tensor:
    """Exact GELU of a linear layer's output, which is not rounded before.

    Args:
        x: (T, D) FP16 or BF16 on a GPU, contiguous.
        linear: (I, D) weights and (I,) bias, in the dtype of `x`.

    Returns:
        (T, I) in the dtype of `x`.
    """
    assert linear.bias is not None
    return _launch(x, linear, linear.out_features, _GELU, gated=False)


def gated_linear(x: Tensor, linear: nn.Linear) -> Tensor:
    """Exact GELU of the first half of a linear layer's output, times the second half.

    Args:
        x: (T, D) FP16 or BF16 on a GPU, contiguous.
        linear: (2 I, D) weights in the dtype of `x`, without bias.

    Returns:
        (T, I) in the dtype of `x`.
    """
    assert linear.bias is None
    return _launch(x, linear, linear.out_features // 2, _GATED, gated=True)


def _launch(x: Tensor, linear: nn.Linear, width_out: int, tile: Tile, *, gated: bool) -> Tensor:
    tokens, width = x.shape
    out = torch.empty((tokens, width_out), dtype=x.dtype, device=x.device)
    tiles = triton.cdiv(tokens, tile.rows) * triton.cdiv(width_out, tile.columns)
    programs = _processors(x.device)
    _linear_gelu[(min(programs, tiles),)](
        TensorDescriptor.from_tensor(x, [tile.rows, tile.depth]),
        TensorDescriptor.from_tensor(linear.weight, [tile.columns, tile.depth]),
        TensorDescriptor.from_tensor(out, [tile.rows, tile.columns]),
        linear.bias, tokens,
        WIDTH=width, OUT=width_out, GATED=gated,
        DTYPE=tl.bfloat16 if x.dtype == torch.bfloat16 else tl.float16,
        ROWS=tile.rows, COLUMNS=tile.columns, DEPTH=tile.depth, GROUP=tile.group,
        FLATTEN=tile.flatten, PROGRAMS=programs, num_stages=3, num_warps=8,
    )  # fmt: skip
    return out
