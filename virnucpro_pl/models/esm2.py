"""ESM-2 (Lin et al. 2023, Science 379, 1123) over packed sequences.

The same numbers as fair-esm's `esm.model.esm2.ESM2`, token-dropout scaling included, without
padding: T tokens of N sequences lie one behind the other.
Shapes: N sequences in a pack, T tokens in a pack, H heads, K head width, D model width.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from virnucpro_pl.models.activation import gelu
from virnucpro_pl.models.attention import attend, lay_out
from virnucpro_pl.models.compiled_steps import Steps

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

    def project(self, normed: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys, values (T, H, K) of (T, D); `cos` and `sin` are (T, 1, K) in fp32."""
        qkv = self.qkv(normed).unflatten(-1, (3, self.heads, -1))  # (T, 3, H, K)
        qk = rotate(qkv[:, :2], cos[:, None], sin[:, None])  # (T, 2, H, K)
        return qk[:, 0], qk[:, 1], qkv[:, 2]

    def transform(self, normed: Tensor) -> Tensor:
        """Feed-forward network of (T, D)."""
        return self.fc2(gelu(self.fc1(normed)))  # type: ignore[no-any-return]


def project(layer: Layer, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Everything before the first attention."""
    return layer.project(layer.attention_norm(x), cos, sin)


def between(
    layer: Layer,
    following: Layer,
    x: Tensor,
    attended: Tensor,
    cos: Tensor,
    sin: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Everything from one attention to the next, so that a compiler can fuse across layers."""
    x, normed = add_norm(x, layer.out(attended.flatten(1)), layer.feedforward_norm, backend)
    x, normed = add_norm(x, layer.transform(normed), following.attention_norm, backend)
    return x, *following.project(normed, cos, sin)


def finish(layer: Layer, x: Tensor, attended: Tensor, norm: nn.Module, backend: str) -> Tensor:
    """Everything behind the last attention."""
    x, normed = add_norm(x, layer.out(attended.flatten(1)), layer.feedforward_norm, backend)
    return norm(x + layer.transform(normed))  # type: ignore[no-any-return]


def add_norm(x: Tensor, delta: Tensor, norm: nn.LayerNorm, backend: str) -> tuple[Tensor, Tensor]:
    """A residual sum (T, D) and its LayerNorm, which `triton` rounds as the next product does."""
    if backend == "triton":
        from virnucpro_pl.models.triton_norm import add_then_norm  # no Triton without a GPU

        return add_then_norm(x, delta, norm)
    x = x + delta
    return x, norm(x)


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
        self._steps = Steps(project, between, finish)

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
            tokens: (T,) token numbers, `<cls>` and `<eos>` included, no padding.
            cu_seqlens: (N+1,) int32 start of each sequence in the pack, then T.
            max_seqlen: Tokens of the longest sequence.
            backend: `triton`, `varlen` or `sdpa`, see `models.attention`.
            layer: 0 for the scaled token embeddings, k for the output of layer k (before the final
                LayerNorm, as fair-esm's `repr_layers=[k]`), None or the last for the output.
            fill_to: Rows that compiled layers compute, see `models.compiled_steps`; those behind
                the T tokens are no sequence's and hold anything. Not for `sdpa`.

        Returns:
            (T, D) hidden states.
        """
        tokens_given = len(tokens)
        layout = lay_out(cu_seqlens, max_seqlen, tokens_given, backend)
        x = self.embed(tokens, cu_seqlens)  # (T, D)
        last = self.config.layers if layer is None else layer
        if last == 0:
            return x
        (first, middle, final), fill = self._steps.choose(tokens_given, fill_to)
        x = F.pad(x, (0, 0, 0, fill))
        cos, sin = self.rotary_table(F.pad(layout.position, (0, fill)))  # (T, 1, K)
        layers: list[Layer] = list(self.layers[:last])  # type: ignore[arg-type]
        q, k, v = first(layers[0], x, cos, sin)  # (T, H, K)
        for block, following in pairwise(layers):
            attended = attend(q, k, v, layout)
            x, q, k, v = middle(block, following, x, attended, cos, sin, backend)
        norm = self.final_norm if last == self.config.layers else nn.Identity()
        hidden: Tensor = final(layers[-1], x, attend(q, k, v, layout), norm, backend)
        return hidden[:tokens_given]

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile what lies between two attentions: one graph for all layers, one for each end."""
        self._steps.compile()

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
        """Cosines and sines (T, 1, K) of the rotary angles, in fp32."""
        if self.inverse_frequency.device != position.device:
            self.inverse_frequency = self.inverse_frequency.to(position.device)
        angle = position[:, None].float() * self.inverse_frequency  # (T, K/2) fp32
        angle = torch.cat((angle, angle), dim=-1)[:, None]  # (T, 1, K)
        return angle.cos(), angle.sin()


def inverse_frequency(head_width: int) -> Tensor:
    """Rotary frequencies (K/2,) in fp32 on the CPU (Su et al. 2021, arXiv:2104.09864)."""
    return 1.0 / (10000 ** (torch.arange(0, head_width, 2, device="cpu").float() / head_width))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of (..., K), computed in fp32, returned in the dtype of `x`."""
    x1, x2 = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-x2, x1), dim=-1) * sin).to(x.dtype)
