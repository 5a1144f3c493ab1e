"""Which operations a network computes by, besides its matrix products and attentions."""

from __future__ import annotations

from virnucpro_pl.models.operations import Operations


def choose_operations(fused: bool) -> Operations:
    """Choose how to compute what is no matrix product.

    Args:
        fused: Whether by Triton's kernels, which want a GPU that it compiles for, and products in
            FP16 or BF16; else by PyTorch.
    """
    if not fused:
        return Operations()
    from virnucpro_pl.models.triton_operations import TritonOperations  # no Triton without a GPU

    return TritonOperations()
