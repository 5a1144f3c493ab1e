"""ESM-2 as it is published: fair-esm's files, transformers' folders, state dicts; random too."""

from __future__ import annotations

import argparse
import logging
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from virnucpro_pl.errors import WeightsError, listed
from virnucpro_pl.models.checkpoint import Checkpoint, read_checkpoint, require
from virnucpro_pl.models.download import download, named_weights
from virnucpro_pl.models.esm2 import DEFAULT, ESM2, SIZES, VOCABULARY, ESM2Config
from virnucpro_pl.models.weights import assign, assign_random, bare_sizes, on_meta, sizes_in

log = logging.getLogger(__name__)

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
_TRANSFORMERS_ESM2 = {
    "model_type": "esm",
    "position_embedding_type": "rotary",
    "emb_layer_norm_before": False,
    "is_decoder": False,
    "vocab_size": VOCABULARY,
    "layer_norm_eps": 1e-5,
}
_FAIR_ESM_SIZES = (
    "encoder_layers",
    "encoder_embed_dim",
    "encoder_attention_heads",
    "token_dropout",
)
_TRANSFORMERS_SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "token_dropout")
"""Names of layers, width, heads and dropout in each configuration."""


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
            return [name.replace(ours, published) for published in theirs]
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
            return [name.replace(ours, published) for published in theirs]
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
        return named_weights(weights)
    path = published_file(name)
    if not path.is_file():
        download(f"https://dl.fbaipublicfiles.com/fair-esm/models/{name}.pt", path)
    return path


def read_config(name: str | None, path: Path) -> tuple[ESM2Config, list[Path]]:
    """Sizes of the model in a file or folder, and the files that its hash covers.

    Args:
        name: The name that the model must have; None for any.
        path: As for `load_esm2`.

    Raises:
        WeightsError: If the file is damaged, does not tell its sizes, or is another model.
    """
    checkpoint = read_checkpoint(path)
    return _config(name, checkpoint), checkpoint.files


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
        encoder = on_meta(lambda: ESM2(SIZES[name or DEFAULT]))
        assign_random(encoder, device=device, matrix_dtype=matrix_dtype)
        return encoder, []
    checkpoint = read_checkpoint(path)
    config = _config(name, checkpoint)
    encoder = on_meta(lambda: ESM2(config))
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


def _is_fair_esm(checkpoint: Checkpoint) -> bool:
    """Tell whose names the tensors have; a state dict of either may lie in any file."""
    keys = checkpoint.tensors
    return not any(key.endswith("embeddings.word_embeddings.weight") for key in keys) and any(
        key.endswith(".self_attn.q_proj.weight") for key in keys
    )


def _config(name: str | None, checkpoint: Checkpoint) -> ESM2Config:
    """Sizes as the file's own configuration has them, or its tensors, which must be the named."""
    if isinstance(checkpoint.config, argparse.Namespace):
        config = _checked(vars(checkpoint.config), _FAIR_ESM_SIZES, checkpoint.path)
    elif checkpoint.config is not None:
        content, where = {**_TRANSFORMERS_DEFAULTS, **checkpoint.config}, checkpoint.config_file
        config = _checked(content, _TRANSFORMERS_SIZES, where)
        require(content, _TRANSFORMERS_ESM2, where, "an ESM-2")
    else:
        config = _bare_config(checkpoint)
    if name not in (None, config.name):
        raise WeightsError(
            f"{checkpoint.path} is {config.name}, but `name` says {name}: leave the name out, "
            "since the file has its own sizes, or give weights of that model"
        )
    return config


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
        f"not say how many heads, and {checkpoint.no_config}: put the model's there"
    )


def _checked(content: dict[str, Any], names: tuple[str, ...], where: Path) -> ESM2Config:
    """Sizes from a file's own configuration; names are those of layers, width, heads, dropout."""
    missing = [name for name in names if name not in content]
    if missing:
        raise WeightsError(f"{where} is not an ESM-2: it has no {listed(missing)}")
    layers, width, heads = sizes_in(content, names[:3], where)
    if (dropout := content[names[3]]) not in (True, False):  # 1 and 0 are as good
        raise WeightsError(f"{where}: {names[3]} is {dropout!r}, neither true nor false")
    if width % (2 * heads):
        raise WeightsError(
            f"{where}: {names[1]} {width}, {names[2]} {heads}, {names[0]} {layers} are no ESM-2's"
        )
    return ESM2Config(layers, width, heads, bool(dropout))


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
