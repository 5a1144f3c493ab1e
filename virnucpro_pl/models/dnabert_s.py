"""DNABERT-S (Zhou et al. 2024, arXiv:2402.08777) over packed sequences.

The architecture is MosaicBERT (Portes et al. 2023, arXiv:2312.17482): no position embeddings but
symmetric ALiBi, gated linear units, LayerNorm behind each half of a layer. T tokens of N sequences
lie one behind the other; a sequence may have any length.
Shapes: N sequences in a pack, T tokens in a pack, H heads, K head width, D model width, I inner
width of the gated linear units.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from virnucpro_pl.models.attention import Layout, attend, lay_out
from virnucpro_pl.models.choose_operations import choose_operations
from virnucpro_pl.models.operations import Operations

Size = Literal["published", "tiny"]


class DNABERTSConfig(NamedTuple):
    """Sizes of one DNABERT-S."""

    layers: int
    width: int
    """D."""
    heads: int
    """H."""
    inner: int
    """I."""
    vocabulary: int = 4096
    token_types: int = 2
    """Rows of an embedding of which only the first is used."""
    epsilon: float = 1e-12
    """Of the LayerNorms."""

    @property
    def name(self) -> str:
        """The published name of these sizes; where there is none, the sizes themselves."""
        if self[:4] == SIZES["published"][:4]:
            return "DNABERT-S"
        if self == SIZES["tiny"]:
            return "DNABERT-S-tiny"
        return f"DNABERT-S, {self.layers} layers of {self.width}"


SIZES = {
    "published": DNABERTSConfig(12, 768, 12, 3072),
    "tiny": DNABERTSConfig(2, 192, 12, 384),
}
"""Sizes of random weights: those of the authors' config.json, and one for trials."""


class Layer(nn.Module):
    """Post-LayerNorm transformer layer with gated linear units."""

    def __init__(self, config: DNABERTSConfig) -> None:
        """Create the layer's parameters.

        Args:
            config: Sizes of the model.
        """
        super().__init__()
        d = config.width
        self.heads = config.heads
        self.qkv = nn.Linear(d, 3 * d)
        self.out = nn.Linear(d, d)
        self.attention_norm = nn.LayerNorm(d, config.epsilon)
        self.gated = nn.Linear(d, 2 * config.inner, bias=False)
        self.wo = nn.Linear(config.inner, d)
        self.feedforward_norm = nn.LayerNorm(d, config.epsilon)

    def forward(
        self, x: Tensor, given: Tensor, layout: Layout, operations: Operations
    ) -> tuple[Tensor, Tensor]:
        """Run the layer.

        Args:
            x: (T, D) input, for the residual sum.
            given: The same (T, D), for the matrix product; perhaps in half already.
            layout: Where the sequences lie.
            operations: How to compute what is no matrix product.

        Returns:
            The output (T, D) in both forms.
        """
        q, k, v = self.qkv(given).unflatten(-1, (3, self.heads, -1)).unbind(1)  # (T, H, K)
        attended = attend(q, k, v, layout).flatten(1)
        x, given = operations.norm_sum(x, self.out(attended), self.attention_norm)
        inner = operations.gated_linear(given, self.gated)  # (T, I)
        return operations.norm_sum(x, self.wo(inner), self.feedforward_norm)


class DNABERTS(nn.Module):
    """The encoder, without pooler and language-model head."""

    def __init__(self, config: DNABERTSConfig) -> None:
        """Create the parameters (use the meta device before loading weights).

        Args:
            config: Sizes of the model.
        """
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocabulary, config.width)
        self.embed_types = nn.Embedding(config.token_types, config.width)
        self.embed_norm = nn.LayerNorm(config.width, config.epsilon)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        # Not a buffer: a conversion of the module to half must leave these fp32 numbers alone.
        self.slopes = alibi_slopes(config.heads)

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
            tokens: (T,) token numbers, `[CLS]` and `[SEP]` included, no padding.
            cu_seqlens: (N+1,) int32 start of each sequence in the pack, then T.
            max_seqlen: Tokens of the longest sequence.
            backend: `triton` or `sdpa`, see `models.attention`.
            layer: 0 for the token embeddings, k for the output of layer k, None for the last.
            fused: Whether kernels compute what lies between the matrix products, which are in FP16
                or BF16 then; not for `sdpa`.

        Returns:
            (T, D) hidden states.
        """
        if self.slopes.device != tokens.device:
            self.slopes = self.slopes.to(tokens.device)
        x: Tensor = self.embed_norm(self.embed_tokens(tokens) + self.embed_types.weight[0])
        layout = lay_out(cu_seqlens, max_seqlen, len(tokens), backend, self.slopes)
        operations, given = choose_operations(fused), x
        for block in self.layers[:layer]:
            x, given = block(x, given, layout, operations)
        return x


def alibi_slopes(heads: int) -> Tensor:
    """Slopes (H,) in fp32 on the CPU, positive, of any number of heads.

    Powers of 2^(-8/H) for a power of two; for another number those of the next smaller power of
    two, then every other one of the next larger (Press et al. 2022, `get_slopes` in
    fairseq/models/transformer.py of ofirpress/attention_with_linear_biases).
    """
    if heads & (heads - 1):
        smaller = 2 ** int(math.log2(heads))
        more = alibi_slopes(2 * smaller)[::2][: heads - smaller]
        return torch.cat((alibi_slopes(smaller), more))
    # In double precision first, as the authors' Python floats are.
    slopes = [2.0 ** (-8 * (i + 1) / heads) for i in range(heads)]
    return torch.tensor(slopes, dtype=torch.float32, device="cpu")
