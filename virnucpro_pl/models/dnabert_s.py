"""DNABERT-S (Zhou et al. 2024, arXiv:2402.08777) over packed sequences.

The architecture is MosaicBERT (Portes et al. 2023, arXiv:2312.17482): no position embeddings but
symmetric ALiBi, gated linear units, LayerNorm behind each half of a layer. T tokens of N sequences
lie one behind the other; a sequence may have any length.
Shapes: N sequences in a pack, T tokens in a pack, H heads, K head width, D model width, I inner
width of the gated linear units.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from virnucpro_pl.models.activation import gelu
from virnucpro_pl.models.attention import attend, lay_out
from virnucpro_pl.models.compiled_steps import Steps

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

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (T, H, K) of x (T, D)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(1)  # (T, 3, H, K)
        return q, k, v

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Output (T, D) from the layer's input x (T, D) and what attention (T, H, K) made of it."""
        x = self.attention_norm(self.out(attended.flatten(1)) + x)
        gate, value = self.gated(x).chunk(2, dim=-1)  # (T, I) each
        return self.feedforward_norm(self.wo(gelu(gate) * value) + x)  # type: ignore[no-any-return]


def between(
    layer: Layer, following: Layer, x: Tensor, attended: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Everything from one attention to the next, so that a compiler can fuse across layers."""
    x = layer.finish(x, attended)
    return x, *following.project(x)


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
        self._steps = Steps(Layer.project, between, Layer.finish)

    def forward(
        self,
        tokens: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        backend: str = "sdpa",
        layer: int | None = None,
        fill_to: int = 0,
    ) -> Tensor:
        """Compute hidden states.

        Args:
            tokens: (T,) token numbers, `[CLS]` and `[SEP]` included, no padding.
            cu_seqlens: (N+1,) int32 start of each sequence in the pack, then T.
            max_seqlen: Tokens of the longest sequence.
            backend: `triton` or `sdpa`, see `models.attention`.
            layer: 0 for the token embeddings, k for the output of layer k, None for the last.
            fill_to: Rows that compiled layers compute, see `models.compiled_steps`; those behind
                the T tokens are no sequence's and hold anything. Not for `sdpa`.

        Returns:
            (T, D) hidden states.
        """
        tokens_given = len(tokens)
        if self.slopes.device != tokens.device:
            self.slopes = self.slopes.to(tokens.device)
        x = self.embed_norm(self.embed_tokens(tokens) + self.embed_types.weight[0])  # (T, D)
        last = self.config.layers if layer is None else layer
        if last == 0:
            return x  # type: ignore[no-any-return]
        layout = lay_out(cu_seqlens, max_seqlen, tokens_given, backend, self.slopes)
        (first, middle, final), fill = self._steps.choose(tokens_given, fill_to)
        x = F.pad(x, (0, 0, 0, fill))
        layers: list[Layer] = list(self.layers[:last])  # type: ignore[arg-type]
        q, k, v = first(layers[0], x)  # (T, H, K)
        for block, following in pairwise(layers):
            x, q, k, v = middle(block, following, x, attend(q, k, v, layout))
        hidden: Tensor = final(layers[-1], x, attend(q, k, v, layout))
        return hidden[:tokens_given]

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile what lies between two attentions: one graph for all layers, one for each end."""
        self._steps.compile()


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
