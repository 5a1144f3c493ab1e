"""DNABERT-S as it is published: the authors' repository, folders, state dicts; random ones, too."""

from __future__ import annotations

import logging
from pathlib import Path

import huggingface_hub  # its parts where they are used: who needs none should not wait for them
import torch
from huggingface_hub.constants import HF_HUB_CACHE

from virnucpro_pl.errors import WeightsError, listed
from virnucpro_pl.models.checkpoint import Checkpoint, read_checkpoint, require
from virnucpro_pl.models.dnabert_s import DNABERTS, SIZES, DNABERTSConfig, Size
from virnucpro_pl.models.download import named_weights
from virnucpro_pl.models.weights import assign, assign_random, bare_sizes, on_meta, sizes_in

log = logging.getLogger(__name__)

REPOSITORY = "zhihan1996/DNABERT-S"
"""The authors' weights on the Hugging Face Hub."""
_SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
    "type_vocab_size",
)
"""Entries of config.json, in the order of a `DNABERTSConfig`."""


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
    return _published_folder() if weights is None else named_weights(weights)


def cache_folder() -> Path:
    """Where the Hugging Face cache keeps the authors' weights, whether they are there or not."""
    from huggingface_hub.file_download import repo_folder_name

    return Path(HF_HUB_CACHE) / repo_folder_name(repo_id=REPOSITORY, repo_type="model")


def _published_folder() -> Path:
    """Folder of the authors' weights in the Hugging Face cache; downloaded where it is not whole.

    Their `main` branch; which commit that was is the name of the folder, see `revision`.
    """
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = Path(huggingface_hub.snapshot_download(REPOSITORY, local_files_only=True))
        if _is_whole(folder):
            return folder
    except LocalEntryNotFoundError:
        pass  # nothing in the cache
    log.info("Downloading %s to %s", REPOSITORY, HF_HUB_CACHE)
    try:
        small = ["config.json", "tokenizer.json", "model*.safetensors*"]
        folder = Path(huggingface_hub.snapshot_download(REPOSITORY, allow_patterns=small))
        if not _is_whole(folder):
            huggingface_hub.snapshot_download(
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


def read_config(path: Path) -> tuple[DNABERTSConfig, list[Path]]:
    """Sizes of the model in a file or folder, and the files that its hash covers.

    Args:
        path: As for `load_dnabert_s`.

    Raises:
        WeightsError: If the file is damaged, or does not tell its sizes.
    """
    checkpoint = read_checkpoint(path)
    return _config(checkpoint), checkpoint.files


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
        encoder = on_meta(lambda: DNABERTS(SIZES[size]))
        assign_random(encoder, device=device, matrix_dtype=matrix_dtype)
        return encoder, []
    checkpoint = read_checkpoint(path)
    config = _config(checkpoint)
    encoder = on_meta(lambda: DNABERTS(config))
    assign(
        encoder,
        checkpoint,
        authors_names,
        unused=r"embeddings\.position_ids",
        device=device,
        matrix_dtype=matrix_dtype,
    )
    return encoder, checkpoint.files


def _config(checkpoint: Checkpoint) -> DNABERTSConfig:
    c, where = checkpoint.config, checkpoint.config_file
    if not isinstance(c, dict):
        return _bare_config(checkpoint)
    c = {"type_vocab_size": 2, "layer_norm_eps": 1e-12, **c}
    if missing := [name for name in _SIZES if name not in c]:
        raise WeightsError(f"{where} has no entry {listed(missing)}")
    epsilon = c["layer_norm_eps"]
    if not isinstance(epsilon, float) or not 0 < epsilon < 1:
        raise WeightsError(f"{where}: layer_norm_eps is {epsilon!r}, no small number above 0")
    layers, width, heads, inner, vocabulary, types = sizes_in(c, _SIZES, where)
    config = DNABERTSConfig(layers, width, heads, inner, vocabulary, types, epsilon)
    require(c, {"model_type": "bert", "hidden_act": "gelu"}, where, "a DNABERT-S")
    if config.width % config.heads:
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
        f"published DNABERT-S, and does not say how many heads, and {checkpoint.no_config}: put "
        "the model's there"
    )
