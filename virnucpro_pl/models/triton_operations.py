"""Triton kernels for what lies between a network's matrix products: one pass over memory each."""

from __future__ import annotations

from torch import Tensor, nn

from virnucpro_pl.models.operations import Operations
from virnucpro_pl.models.triton_gelu import gated_gelu, gelu_in_place
from virnucpro_pl.models.triton_linear import can_fuse, gated_linear, linear_gelu
from virnucpro_pl.models.triton_norm import add_then_norm, norm_of_sum
from virnucpro_pl.models.triton_rotary import rotate_in_place


class TritonOperations(Operations):
    """The same, computed in FP32 where PyTorch's take several passes and round in between."""

    def add_norm(self, x: Tensor, delta: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
        """A residual sum (T, D) and its LayerNorm, the latter in the dtype of `delta`."""
        return add_then_norm(x, delta, norm)

    def norm_sum(self, x: Tensor, delta: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
        """The LayerNorm (T, D) of a residual sum, in the dtypes of `x` and of `delta`."""
        return norm_of_sum(x, delta, norm)

    def rotate(self, qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (T, H, K) of `qkv`, which is overwritten."""
        rotate_in_place(qkv, cos, sin)
        q, k, v = qkv.unbind(1)
        return q, k, v

    def linear_gelu(self, x: Tensor, linear: nn.Linear) -> Tensor:
        """GELU of a linear layer's output, in one kernel where that is known to be faster."""
        return linear_gelu(x, linear) if can_fuse(x, linear) else gelu_in_place(linear(x))

    def gated_linear(self, x: Tensor, linear: nn.Linear) -> Tensor:
        """GELU of the first half of a linear layer's output, times the second, likewise."""
        return gated_linear(x, linear) if can_fuse(x, linear) else gated_gelu(linear(x))
