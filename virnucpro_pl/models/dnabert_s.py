"""DNABERT-S (Zhou et al. 2024, arXiv:2402.08777) over packed sequences.

The architecture is MosaicBERT (Portes et al. 2023, arXiv:2312.17482): no position embeddings but
symmetric ALiBi, gated linear units, LayerNorm behind each half of a layer. T tokens of N sequences
lie one behind the other; a sequence may have any length.
Shapes: N sequences in a pack, T tokens in a pack, H heads, K head width, D model width, I inner
width of the gated linear units.
"""

from __future__ import annotations

import logging
import math
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from huggingface_hub import snapshot_download
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.file_download import repo_folder_name
from torch import Tensor, nn

from virnucpro_pl.errors import WeightsError
from virnucpro_pl.models.activation import gelu
from virnucpro_pl.models.attention import attend, lay_out
from virnucpro_pl.models.checkpoint import Checkpoint, read_checkpoint
from virnucpro_pl.models.steps import Steps
from virnucpro_pl.models.weights import assign, assign_random, bare_sizes

log = logging.getLogger(__name__)

REPOSITORY = "zhihan1996/DNABERT-S"
"""The authors' weights on the Hugging Face Hub."""
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


def project(layer: Layer, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Everything before the first attention."""
    return layer.project(x)


def between(
    layer: Layer, following: Layer, x: Tensor, attended: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Everything from one attention to the next, so that a compiler can fuse across layers."""
    x = layer.finish(x, attended)
    return x, *following.project(x)


def finish(layer: Layer, x: Tensor, attended: Tensor) -> Tensor:
    """Everything behind the last attention."""
    return layer.finish(x, attended)


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
            tokens: (T,) token numbers, `[CLS]` and `[SEP]` included, no padding.
            cu_seqlens: (N+1,) int32 start of each sequence in the pack, then T.
            max_seqlen: Tokens of the longest sequence.
            backend: `triton` or `sdpa`, see `models.attention`.
            layer: 0 for the token embeddings, k for the output of layer k, None for the last.
            fill_to: Rows that compiled layers compute, see `models.steps`; those behind the T
                tokens are no sequence's and hold anything. Not for `sdpa`.

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
    """Slopes (H,) in fp32, positive, of any number of heads.

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
    return torch.tensor(slopes, dtype=torch.float32)


def authors_names(name: str) -> list[str]:
    """The name in the authors' state dict, prefix removed, of our parameter `name`."""
    for ours, theirs in (
        ("embed_tokens.", "embeddings.word_embeddings."),
        ("embed_types.", "embeddings.token_type_embeddings."),
        ("embed_norm.", "embeddings.LayerNorm."),
        ("layers.", "encoder.layer."),
        (".qkv.", ".attention.self.Wqkv."),
        (".out.", ".attention.output.dense."),
        (".attention_norm.", ".attention.output.LayerNorm."),
        (".gated.", ".mlp.gated_layers."),
        (".wo.", ".mlp.wo."),
        (".feedforward_norm.", ".mlp.layernorm."),
    ):
        name = name.replace(ours, theirs)
    return [name]


def find_weights(size: Size, weights: str | None) -> Path | None:
    """Find the weights folder or file, downloading the authors' if it is not there.

    Args:
        size: Size of random weights.
        weights: None for the authors' weights, a path, or `random`.

    Returns:
        The path, or None for random weights.

    Raises:
        WeightsError: If there is no such folder or file, the download fails, or a size is asked for
            where the weights have their own.
    """
    if weights == "random":
        log.warning(
            "DNABERT-S (%s) has RANDOM weights and a built-in tokenizer unless another is named: "
            "its vectors mean nothing",
            size,
        )
        return None
    if size != "published":
        given = weights or REPOSITORY
        raise WeightsError(f"size {size!r} is for random weights; {given} has its own")
    if weights is None:
        return _published_folder()
    path = Path(weights).expanduser()
    if not path.exists():
        raise WeightsError(f"{path}: no such weights folder or file")
    return path


def cache_folder() -> Path:
    """Where the Hugging Face cache keeps the authors' weights, whether they are there or not."""
    return Path(HF_HUB_CACHE) / repo_folder_name(repo_id=REPOSITORY, repo_type="model")


def _published_folder() -> Path:
    """Folder of the authors' weights in the Hugging Face cache; downloaded where it is not whole.

    Their `main` branch; which commit that was is the name of the folder, see `revision`.
    """
    try:
        folder = Path(snapshot_download(REPOSITORY, local_files_only=True))
        if _is_whole(folder):
            return folder
    except LocalEntryNotFoundError:
        pass  # nothing in the cache
    log.info("Downloading %s to %s", REPOSITORY, HF_HUB_CACHE)
    try:
        small = ["config.json", "tokenizer.json", "model*.safetensors*"]
        folder = Path(snapshot_download(REPOSITORY, allow_patterns=small))
        if not _is_whole(folder):
            snapshot_download(
                REPOSITORY, revision=folder.name, allow_patterns=["pytorch_model*.bin*"]
            )
    except (OSError, HfHubHTTPError) as error:
        raise WeightsError(_how_to_fetch(str(error).partition("\n")[0])) from error
    if not _is_whole(folder):
        raise WeightsError(_how_to_fetch(f"{folder} lacks some of these files"))
    return folder


def _is_whole(folder: Path) -> bool:
    weights = ("model.safetensors", "pytorch_model.bin")
    return all((folder / name).exists() for name in ("config.json", "tokenizer.json")) and any(
        (folder / file).exists() for name in weights for file in (name, f"{name}.index.json")
    )


def _how_to_fetch(why: str) -> str:
    return (
        f"The authors' weights {REPOSITORY} are not on this machine and cannot be downloaded "
        f"({why}). On a machine with a network fetch config.json, tokenizer.json and "
        f"model.safetensors or pytorch_model.bin from https://huggingface.co/{REPOSITORY}, "
        "put them into one folder and give it as the embedder's `weights`, or copy that machine's "
        f"Hugging Face cache to {HF_HUB_CACHE}; `weights: random` is there for a trial."
    )


def revision(path: Path | None) -> str | None:
    """The commit that a folder of the Hugging Face cache is of; None for any other path."""
    if path is None or path.parent.name != "snapshots":
        return None
    return path.name


def read_config(path: Path) -> DNABERTSConfig:
    """Sizes of the model in a file or folder.

    Args:
        path: As for `load_dnabert_s`.

    Raises:
        WeightsError: If the file is damaged, or does not tell its sizes.
    """
    return _config(read_checkpoint(path))


def load_dnabert_s(
    size: Size, path: Path | None, *, device: torch.device, matrix_dtype: torch.dtype
) -> tuple[DNABERTS, list[Path]]:
    """Build an encoder and fill it.

    Args:
        size: Size of random weights; a folder brings its own.
        path: A file or folder, see `read_checkpoint`, or None for random weights.
        device: Where the parameters go.
        matrix_dtype: Dtype of the linear layers' parameters.

    Returns:
        The encoder and the files it came from.

    Raises:
        WeightsError: If a file is damaged or does not fit its own configuration.
    """
    if path is None:
        encoder = _on_meta(SIZES[size])
        assign_random(encoder, device=device, matrix_dtype=matrix_dtype)
        return encoder, []
    checkpoint = read_checkpoint(path)
    encoder = _on_meta(_config(checkpoint))
    assign(
        encoder,
        checkpoint,
        authors_names,
        unused=r"embeddings\.position_ids",
        device=device,
        matrix_dtype=matrix_dtype,
    )
    return encoder, checkpoint.files


def _on_meta(config: DNABERTSConfig) -> DNABERTS:
    with torch.device("meta"):
        encoder = DNABERTS(config)
    encoder.slopes = alibi_slopes(config.heads)
    return encoder.eval().requires_grad_(False)


def _config(checkpoint: Checkpoint) -> DNABERTSConfig:
    c, where = checkpoint.config, checkpoint.files[0].parent / "config.json"
    if not isinstance(c, dict):
        return _bare_config(checkpoint)
    try:
        config = DNABERTSConfig(
            int(c["num_hidden_layers"]),
            int(c["hidden_size"]),
            int(c["num_attention_heads"]),
            int(c["intermediate_size"]),
            int(c["vocab_size"]),
            int(c.get("type_vocab_size", 2)),
            float(c.get("layer_norm_eps", 1e-12)),
        )
    except KeyError as error:
        raise WeightsError(f"{where} has no entry {error}") from error
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{where} has sizes that are no numbers: {error}") from error
    for key, needed in (("model_type", "bert"), ("hidden_act", "gelu")):
        if c.get(key, needed) != needed:
            raise WeightsError(f"{where} is not a DNABERT-S: {key} is {c[key]!r}, not {needed!r}")
    if min(config.layers, config.heads) < 1 or config.width % config.heads:
        raise WeightsError(
            f"{where}: {config.layers} layers of width {config.width} with {config.heads} heads "
            "are no DNABERT-S"
        )
    return config


def _bare_config(checkpoint: Checkpoint) -> DNABERTSConfig:
    """Sizes of tensors alone, which do not tell how many heads there are."""
    gated = r"encoder\.layer\.(\d+)\.mlp\.gated_layers\.weight"
    table = "embeddings.word_embeddings.weight"
    layers, vocabulary, width = bare_sizes(checkpoint, table, gated)
    published = SIZES["published"]
    if (layers, width, vocabulary) == (published.layers, published.width, published.vocabulary):
        return published
    raise WeightsError(
        f"{checkpoint.path} has {layers} layers of {width} and {vocabulary} tokens, unlike the "
        "published DNABERT-S, and does not say how many heads: put the model's config.json "
        "beside it"
    )
