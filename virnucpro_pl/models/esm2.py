"""ESM-2 (Lin et al. 2023, Science 379, 1123) over packed sequences.

The same numbers as fair-esm's `esm.model.esm2.ESM2`, token-dropout scaling included, without
padding: T tokens of N sequences lie one behind the other.
Shapes: N sequences in a pack, T tokens in a pack, H heads, K head width, D model width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from virnucpro_pl.models.attention import Layout, attend, lay_out
from virnucpro_pl.models.choose_operations import choose_operations
from virnucpro_pl.models.operations import Operations

VOCABULARY = 33
PAD, MASK = 1, 32
TRAINED_MASK_SHARE = 0.15 * 0.8
"""Share of tokens replaced by `<mask>` in training (fair-esm, esm/model/esm2.py)."""

DEFAULT = "esm2_t36_3B_UR50D"
"""The model that VirNucPro uses."""


class ESM2Config(NamedTuple):
    """Sizes of one ESM-2."""

    layers: int
    width: int
    """D."""
    heads: int
    """H."""
    token_dropout: bool = True
    """Whether token embeddings are scaled by the share of masked tokens."""

    @property
    def name(self) -> str:
        """The published name of these sizes; where there is none, the sizes themselves."""
        published = {known[:3]: name for name, known in SIZES.items()}
        return published.get(self[:3], f"ESM-2, {self.layers} layers of {self.width}")


SIZES = {
    "esm2_t6_8M_UR50D": ESM2Config(6, 320, 20),
    "esm2_t12_35M_UR50D": ESM2Config(12, 480, 20),
    "esm2_t30_150M_UR50D": ESM2Config(30, 640, 20),
    "esm2_t33_650M_UR50D": ESM2Config(33, 1280, 20),
    "esm2_t36_3B_UR50D": ESM2Config(36, 2560, 40),
    "esm2_t48_15B_UR50D": ESM2Config(48, 5120, 40),
}
"""The published sizes by name (fair-esm, README)."""


class Layer(nn.Module):
    """Pre-LayerNorm transformer layer with rotary attention and a GELU feed-forward network."""

    def __init__(self, config: ESM2Config) -> None:
        """Create the layer's parameters.

        Args:
            config: Sizes of the model.
        """
        super().__init__()
        d = config.width
        self.heads = config.heads
        self.attention_norm = nn.LayerNorm(d)
        self.qkv = nn.Linear(d, 3 * d)
        self.out = nn.Linear(d, d)
        self.feedforward_norm = nn.LayerNorm(d)
        self.fc1 = nn.Linear(d, 4 * d)
        self.fc2 = nn.Linear(4 * d, d)

    def forward(
        self,
        x: Tensor,
        delta: Tensor | None,
        rotary: tuple[Tensor, Tensor],
        layout: Layout,
        operations: Operations,
    ) -> tuple[Tensor, Tensor]:
        """Run the layer on a residual sum (T, D) whose last part is still to be added.

        Args:
            x: (T, D) sum without that part.
            delta: (T, D) that part; None if there is none.
            rotary: (T, K/2) cosines and sines of the rotary angles.
            layout: Where the sequences lie.
            operations: How to compute what is no matrix product.

        Returns:
            The same of the layer's output.
        """
        if delta is None:
            normed = self.attention_norm(x)
        else:
            x, normed = operations.add_norm(x, delta, self.attention_norm)
        qkv = self.qkv(normed).unflatten(-1, (3, self.heads, -1))  # (T, 3, H, K)
        attended = attend(*operations.rotate(qkv, *rotary), layout)  # (T, H, K)
        x, normed = operations.add_norm(x, self.out(attended.flatten(1)), self.feedforward_norm)
        return x, self.fc2(operations.linear_gelu(normed, self.fc1))


class ESM2(nn.Module):
    """The encoder, without language-model and contact heads."""

    def __init__(self, config: ESM2Config) -> None:
        """Create the parameters (use the meta device before loading weights).

        Args:
            config: Sizes of the model.
        """
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(VOCABULARY, config.width, padding_idx=PAD)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(config.width)
        # Not a buffer: a conversion of the module to half must leave these fp32 numbers alone.
        self.inverse_frequency = inverse_frequency(config.width // config.heads)

    def forward(
        self,
        tokens: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        backend: str = "sdpa",
        layer: int | None = None,
        fused: bool = False,
    ) -> Tensor:
        """Compute hidden states.

        Args:
            tokens: (T,) token numbers, `<cls>` and `<eos>` included, no padding.
            cu_seqlens: (N+1,) int32 start of each sequence in the pack, then T.
            max_seqlen: Tokens of the longest sequence.
            backend: `triton`, `varlen` or `sdpa`, see `models.attention`.
            layer: 0 for the scaled token embeddings, k for the output of layer k (before the final
                LayerNorm, as fair-esm's `repr_layers=[k]`), None or the last for the output.
            fused: Whether kernels compute what lies between the matrix products, which are in FP16
                or BF16 then; not for `sdpa`.

        Returns:
            (T, D) hidden states.
        """
        layout = lay_out(cu_seqlens, max_seqlen, len(tokens), backend)
        x = self.embed(tokens, cu_seqlens)  # (T, D)
        last = self.config.layers if layer is None else layer
        rotary, operations = self.rotary_table(layout.position), choose_operations(fused)
        delta: Tensor | None = None
        for block in self.layers[:last]:
            x, delta = block(x, delta, rotary, layout, operations)
        if delta is not None:
            x = x + delta
        return self.final_norm(x) if last == self.config.layers else x

    def embed(self, tokens: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Token embeddings (T, D), scaled as in training where a share of tokens was masked."""
        x: Tensor = self.embed_tokens(tokens)
        if not self.config.token_dropout:
            return x
        masked = tokens == MASK
        lengths = cu_seqlens.diff()
        per_sequence = torch.segment_reduce(masked.float(), "sum", lengths=lengths, unsafe=True)
        scale = (1 - TRAINED_MASK_SHARE) / (1 - per_sequence / lengths)  # (N,) fp32
        scale = scale.repeat_interleave(lengths, output_size=len(tokens))
        return torch.where(masked, 0, scale)[:, None].to(x.dtype) * x

    def rotary_table(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (T, K/2) of the rotary angles, in fp32."""
        if self.inverse_frequency.device != position.device:
            self.inverse_frequency = self.inverse_frequency.to(position.device)
        angle = position[:, None].float() * self.inverse_frequency
        return angle.cos(), angle.sin()


def inverse_frequency(head_width: int) -> Tensor:
    """Rotary frequencies (K/2,) in fp32 on the CPU (Su et al. 2021, arXiv:2104.09864)."""
    return 1.0 / (10000 ** (torch.arange(0, head_width, 2, device="cpu").float() / head_width))
