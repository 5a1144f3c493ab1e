"""The activation of both networks: GELU in its exact form, x times the normal distribution."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def gelu(x: Tensor) -> Tensor:
    """Exact GELU (Hendrycks and Gimpel 2016, arXiv:1606.08415) of any shape.

    Compiled layers, which are FP16 or BF16, take a formula that costs half of the error function
    and differs from it by less than they round.
    """
    return gelu_by_formula(x) if torch.compiler.is_compiling() else F.gelu(x)


def gelu_by_formula(x: Tensor) -> Tensor:
    """Exact GELU to 2e-7 of its argument's size: max(x, 0) - |x| P(-|x|).

    P, the normal distribution, by formula 26.2.17 of Abramowitz and Stegun 1964.

    Args:
        x: Any shape; computed in FP32.

    Returns:
        The same shape in the dtype of `x`.
    """
    wide = x.float()
    size = wide.abs()
    t = 1 / (1 + 0.2316419 * size)
    series = 1.330274429 * t - 1.821255978
    for coefficient in (1.781477937, -0.356563782, 0.319381530):
        series = series * t + coefficient
    density = torch.exp2(wide * wide * (-0.5 / math.log(2))) / math.sqrt(2 * math.pi)
    return (wide.clamp(min=0) - size * (density * t * series)).to(x.dtype)
