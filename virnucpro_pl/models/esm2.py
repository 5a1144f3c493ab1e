"""ESM-2 (Lin et al. 2023, Science 379, 1123) over packed sequences.

The same numbers as fair-esm's `esm.model.esm2.ESM2`, token-dropout scaling included, without
padding: T tokens of N sequences lie one behind the other.
Shapes: N sequences in a pack, T tokens in a pack, H heads, K head width, D model width.
"""

from __future__ import annotations

import argparse
import logging
import re
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from virnucpro_pl.errors import WeightsError
from virnucpro_pl.models.activation import gelu
from virnucpro_pl.models.attention import attend, lay_out
from virnucpro_pl.models.checkpoint import Checkpoint, read_checkpoint
from virnucpro_pl.models.files import download
from virnucpro_pl.models.steps import Steps
from virnucpro_pl.models.weights import assign, assign_random, bare_sizes

log = logging.getLogger(__name__)

VOCABULARY = 33
PAD, MASK = 1, 32
_FREQUENCY = re.compile(r"((encoder\.)?layers?\.[^.]+\.[\w.]*|(encoder\.)?)rot\w*\.inv_freq")
"""Names of the rotary frequencies, prefix removed; a head may have others of its own."""
_TRANSFORMERS_DEFAULTS = {
    "model_type": "esm",
    "token_dropout": False,
    "position_embedding_type": "absolute",
    "emb_layer_norm_before": None,
    "is_decoder": False,
    "vocab_size": None,
    "layer_norm_eps": 1e-12,
}
"""What transformers' EsmConfig takes where config.json says nothing."""
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
            fill_to: Rows that compiled layers compute, see `models.steps`; those behind the T
                tokens are no sequence's and hold anything. Not for `sdpa`.

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
    """Rotary frequencies (K/2,) in fp32 (Su et al. 2021, arXiv:2104.09864)."""
    return 1.0 / (10000 ** (torch.arange(0, head_width, 2).float() / head_width))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of (..., K), computed in fp32, returned in the dtype of `x`."""
    x1, x2 = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-x2, x1), dim=-1) * sin).to(x.dtype)


def fair_esm_names(name: str) -> list[str]:
    """Names in a fair-esm file, prefix removed, of what makes up our parameter `name`."""
    if name.startswith("final_norm"):
        return [name.replace("final_norm", "emb_layer_norm_after")]
    for ours, theirs in (
        (".attention_norm.", [".self_attn_layer_norm."]),
        (".feedforward_norm.", [".final_layer_norm."]),
        (".qkv.", [f".self_attn.{p}_proj." for p in "qkv"]),
        (".out.", [".self_attn.out_proj."]),
    ):
        if ours in name:
            return [name.replace(ours, theirs_) for theirs_ in theirs]
    return [name]


def transformers_names(name: str) -> list[str]:
    """Names in a transformers `EsmModel` of the tensors that make up our parameter `name`."""
    name = name.replace("embed_tokens", "embeddings.word_embeddings")
    name = name.replace("final_norm", "encoder.emb_layer_norm_after")
    name = name.replace("layers.", "encoder.layer.")
    for ours, theirs in (
        (".attention_norm.", [".attention.LayerNorm."]),
        (".feedforward_norm.", [".LayerNorm."]),
        (".qkv.", [f".attention.self.{p}." for p in ("query", "key", "value")]),
        (".out.", [".attention.output.dense."]),
        (".fc1.", [".intermediate.dense."]),
        (".fc2.", [".output.dense."]),
    ):
        if ours in name:
            return [name.replace(ours, theirs_) for theirs_ in theirs]
    return [name]


def published_file(name: str) -> Path:
    """Where torch hub, and so fair-esm, keeps the published weights of that name."""
    return Path(torch.hub.get_dir()) / "checkpoints" / f"{name}.pt"


def find_weights(name: str | None, weights: str | None) -> Path | None:
    """Find the weights file or folder, downloading a published file that is not there.

    Args:
        name: A name from `SIZES`; None if a file or folder has the sizes.
        weights: None for the published file, a path, or `random`.

    Returns:
        The path, or None for random weights.

    Raises:
        WeightsError: If there is no such model, file or folder, or the download fails.
    """
    if name is not None and name not in SIZES:
        raise WeightsError(f"There is no ESM-2 named {name!r}; the names are {', '.join(SIZES)}")
    name = name or DEFAULT
    if weights == "random":
        log.warning("%s has RANDOM weights: its vectors mean nothing", name)
        return None
    if weights is not None:
        path = Path(weights).expanduser()
        if not path.exists():
            raise WeightsError(f"{path}: no such weights file or folder")
        return path
    path = published_file(name)
    if not path.is_file():
        download(f"https://dl.fbaipublicfiles.com/fair-esm/models/{name}.pt", path)
    return path


def read_config(name: str | None, path: Path) -> ESM2Config:
    """Sizes of the model in a file or folder.

    Args:
        name: The name that the model must have; None for any.
        path: As for `load_esm2`.

    Raises:
        WeightsError: If the file is damaged, does not tell its sizes, or is another model.
    """
    return _config(name, read_checkpoint(path))


def load_esm2(
    name: str | None, path: Path | None, *, device: torch.device, matrix_dtype: torch.dtype
) -> tuple[ESM2, list[Path]]:
    """Build an encoder and fill it.

    Args:
        name: Published name, which gives the sizes of random weights, and which those of a file
            must have; None for `DEFAULT`, or for whatever model the file holds.
        path: A file or folder, see `read_checkpoint`, or None for random weights.
        device: Where the parameters go.
        matrix_dtype: Dtype of the linear layers' parameters.

    Returns:
        The encoder and the files it came from.

    Raises:
        WeightsError: If the file is damaged, does not fit its own configuration, or is another
            model.
    """
    if path is None:
        encoder = _on_meta(SIZES[name or DEFAULT])
        assign_random(encoder, device=device, matrix_dtype=matrix_dtype)
        return encoder, []
    checkpoint = read_checkpoint(path)
    encoder = _on_meta(_config(name, checkpoint))
    # Models fine-tuned with older transformers have learned positions that nothing reads; where
    # neither configuration nor frequencies say that positions are rotary, they are ESM-1's.
    rotary = isinstance(checkpoint.config, dict) or any(map(_FREQUENCY.search, checkpoint.tensors))
    prefix = assign(
        encoder,
        checkpoint,
        fair_esm_names if _is_fair_esm(checkpoint) else transformers_names,
        unused=_FREQUENCY.pattern + (r"|embeddings\.position_.*" if rotary else ""),
        device=device,
        matrix_dtype=matrix_dtype,
    )
    frequencies = {
        key: tensor
        for key, tensor in checkpoint.tensors.items()
        if key.startswith(prefix) and _FREQUENCY.fullmatch(key.removeprefix(prefix))
    }
    if frequencies:
        expected = encoder.inverse_frequency.shape
        encoder.inverse_frequency = _one_frequency(frequencies, expected, path).to(device)
    return encoder, checkpoint.files


def _on_meta(config: ESM2Config) -> ESM2:
    with torch.device("meta"):
        encoder = ESM2(config)
    encoder.inverse_frequency = inverse_frequency(config.width // config.heads)
    return encoder.eval().requires_grad_(False)


def _is_fair_esm(checkpoint: Checkpoint) -> bool:
    """Tell whose names the tensors have; a state dict of either may lie in any file."""
    keys = checkpoint.tensors
    return not any(key.endswith("embeddings.word_embeddings.weight") for key in keys) and any(
        key.endswith(".self_attn.q_proj.weight") for key in keys
    )


def _config(name: str | None, checkpoint: Checkpoint) -> ESM2Config:
    """Sizes as the file's own configuration has them, or its tensors, which must be the named."""
    if isinstance(checkpoint.config, argparse.Namespace):
        config = _fair_esm_config(checkpoint.config, checkpoint.path)
    elif checkpoint.config is not None:
        where = checkpoint.files[0].parent / "config.json"
        config = _transformers_config(checkpoint.config, where)
    else:
        config = _bare_config(checkpoint)
    if name not in (None, config.name):
        raise WeightsError(
            f"{checkpoint.path} is {config.name}, but `name` says {name}: leave the name out, "
            "since the file has its own sizes, or give weights of that model"
        )
    return config


def _fair_esm_config(config: argparse.Namespace, where: Path) -> ESM2Config:
    names = ("encoder_layers", "encoder_embed_dim", "encoder_attention_heads", "token_dropout")
    return _checked(vars(config), names, where)


def _transformers_config(config: dict[str, Any], where: Path) -> ESM2Config:
    c = {**_TRANSFORMERS_DEFAULTS, **config}
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "token_dropout")
    sizes = _checked(c, names, where)
    for key, needed in (
        ("model_type", "esm"),
        ("position_embedding_type", "rotary"),
        ("emb_layer_norm_before", False),
        ("is_decoder", False),
        ("vocab_size", VOCABULARY),
        ("layer_norm_eps", 1e-5),
    ):
        if c[key] not in (needed, needed or None):
            raise WeightsError(f"{where} is not an ESM-2: {key} is {c[key]!r}, not {needed!r}")
    return sizes


def _bare_config(checkpoint: Checkpoint) -> ESM2Config:
    """Sizes of tensors alone, which do not tell how many heads there are."""
    if _is_fair_esm(checkpoint):
        table, layer = "embed_tokens.weight", r"layers\.(\d+)\.self_attn\.q_proj\.weight"
    else:
        table = "embeddings.word_embeddings.weight"
        layer = r"encoder\.layer\.(\d+)\.attention\.self\.query\.weight"
    layers, _, width = bare_sizes(checkpoint, table, layer)
    for config in SIZES.values():
        if config[:2] == (layers, width):
            return config
    raise WeightsError(
        f"{checkpoint.path} has {layers} layers of {width}, as no published ESM-2 has, and does "
        "not say how many heads: put the model's config.json beside it"
    )


def _checked(content: dict[str, Any], names: tuple[str, ...], where: Path) -> ESM2Config:
    """Sizes from a file's own configuration; names are those of layers, width, heads, dropout."""
    try:
        layers, width, heads = (int(content[name]) for name in names[:3])
        config = ESM2Config(layers, width, heads, bool(content[names[3]]))
    except KeyError as error:
        raise WeightsError(f"{where} is not an ESM-2: it has no {error}") from error
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{where}: {', '.join(names)} are no sizes: {error}") from error
    if layers < 1 or heads < 1 or width < 2 or width % (2 * heads):
        raise WeightsError(
            f"{where}: {names[1]} {width}, {names[2]} {heads}, {names[0]} {layers} are no ESM-2's"
        )
    return config


def _one_frequency(frequencies: dict[str, Tensor], shape: torch.Size, path: Path) -> Tensor:
    """The frequencies (K/2,) in fp32 that all layers have."""
    key, first = next(iter(frequencies.items()))
    if any(not torch.equal(first, other) for other in frequencies.values()):
        raise WeightsError(f"{path}: the layers' inv_freq differ, which no published ESM-2 does")
    if first.shape != shape:
        raise WeightsError(
            f"{path}: {key} has shape {tuple(first.shape)}, the model needs {tuple(shape)}"
        )
    return first.float()
