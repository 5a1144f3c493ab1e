"""What lies between a network's matrix products and its attentions, by PyTorch's operations.

Shapes: T tokens in a pack, H heads, K head width, D model width, I inner width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Operations:
    """PyTorch's own operations, for every device and precision; without gradients.

    `triton_operations` has kernels for the same.
    """

    def add_norm(self, x: Tensor, delta: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
        """A residual sum (T, D) and its LayerNorm."""
        x = x + delta
        return x, norm(x)

    def norm_sum(self, x: Tensor, delta: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
        """The LayerNorm (T, D) of a residual sum: for the next sum, and for the next product."""
        x = norm(x + delta)
        return x, x

    def rotate(self, qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (T, H, K), the first two with rotary position embedding.

        Args:
            qkv: (T, 3, H, K), which may be overwritten.
            cos: (T, K/2) cosines of the angles, in fp32; computed in fp32.
            sin: (T, K/2) sines.
        """
        cos, sin = cos[:, None, None], sin[:, None, None]
        wide = torch.promote_types(qkv.dtype, torch.float32)
        pairs = qkv[:, :2].to(wide)  # (T, 2, H, K)
        first, second = pairs.chunk(2, dim=-1)
        turned = torch.empty_like(pairs)
        one, two = turned.chunk(2, dim=-1)
        torch.mul(first, cos, out=one).addcmul_(second, sin, value=-1)
        torch.mul(second, cos, out=two).addcmul_(first, sin)
        q, k = turned.to(qkv.dtype).unbind(1)
        return q, k, qkv[:, 2]

    def linear_gelu(self, x: Tensor, linear: nn.Linear) -> Tensor:
        """Exact GELU (Hendrycks and Gimpel 2016, arXiv:1606.08415) of a linear layer's output."""
        return F.gelu(linear(x))

    def gated_linear(self, x: Tensor, linear: nn.Linear) -> Tensor:
        """Exact GELU of the first half (T, I) of a linear layer's output, times the second."""
        gate, value = linear(x).chunk(2, dim=-1)
        gated: Tensor = F.gelu(gate) * value
        return gated
