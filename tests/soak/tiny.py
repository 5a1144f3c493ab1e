"""Tiny models as they are published, and files of embeddings, filled with numbers from a seed."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from virnucpro_pl.input.dna_tokens import SPECIAL_TOKENS, built_in_tokenizer

LAYERS, WIDTH, HEADS = 2, 16, 2
VOCABULARY = {"esm2": 33, "dnabert_s": len(SPECIAL_TOKENS) + sum(4**k for k in range(1, 6))}


def draw(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Tensors of these shapes; norms are near the identity."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: 0.1 * torch.randn(shape, generator=generator)
        + float("norm" in name.lower() and name.endswith("weight"))
        for name, shape in shapes.items()
    }


def linear(name: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}


def fair_esm(seed: int) -> dict[str, Tensor]:
    """ESM-2 by the names of fair-esm's files, one head of the language model among them."""
    d, shapes = WIDTH, {"embed_tokens.weight": (33, WIDTH)}
    for n in range(LAYERS):
        at = f"layers.{n}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear(f"{at}.self_attn.{part}", d, d)
        shapes |= norm(f"{at}.self_attn_layer_norm") | norm(f"{at}.final_layer_norm")
        shapes |= linear(f"{at}.fc1", 4 * d, d) | linear(f"{at}.fc2", d, 4 * d)
    tensors = draw(shapes | norm("emb_layer_norm_after"), seed)
    named = {f"encoder.sentence_encoder.{name}": tensor for name, tensor in tensors.items()}
    return named | {"encoder.lm_head.bias": torch.zeros(33)}


def fair_esm_file(seed: int) -> dict:
    """What a published `.pt` file holds."""
    sizes = argparse.Namespace(
        encoder_layers=LAYERS,
        encoder_embed_dim=WIDTH,
        encoder_attention_heads=HEADS,
        token_dropout=True,
        arch="esm2",
    )
    return {"cfg": {"model": sizes}, "model": fair_esm(seed)}


def transformers_esm(seed: int) -> tuple[dict[str, Tensor], dict]:
    """ESM-2 by the names of transformers, and its config.json."""
    d, shapes = WIDTH, {"esm.embeddings.word_embeddings.weight": (33, WIDTH)}
    for n in range(LAYERS):
        at = f"esm.encoder.layer.{n}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= linear(f"{at}.attention.{part}", d, d)
        shapes |= norm(f"{at}.attention.LayerNorm") | norm(f"{at}.LayerNorm")
        shapes |= linear(f"{at}.intermediate.dense", 4 * d, d)
        shapes |= linear(f"{at}.output.dense", d, 4 * d)
    config = {
        "model_type": "esm",
        "num_hidden_layers": LAYERS,
        "hidden_size": WIDTH,
        "num_attention_heads": HEADS,
        "token_dropout": True,
        "position_embedding_type": "rotary",
        "emb_layer_norm_before": False,
        "vocab_size": 33,
        "layer_norm_eps": 1e-5,
    }
    return draw(shapes | norm("esm.encoder.emb_layer_norm_after"), seed), config


def dnabert_s(seed: int) -> tuple[dict[str, Tensor], dict]:
    """DNABERT-S by the authors' names, and its config.json."""
    d, inner, vocabulary = WIDTH, 24, VOCABULARY["dnabert_s"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (vocabulary, d),
        "embeddings.token_type_embeddings.weight": (2, d),
    }
    shapes |= norm("embeddings.LayerNorm")
    for n in range(LAYERS):
        at = f"encoder.layer.{n}"
        shapes |= linear(f"{at}.attention.self.Wqkv", 3 * d, d)
        shapes |= linear(f"{at}.attention.output.dense", d, d)
        shapes |= norm(f"{at}.attention.output.LayerNorm") | norm(f"{at}.mlp.layernorm")
        shapes[f"{at}.mlp.gated_layers.weight"] = (2 * inner, d)
        shapes |= linear(f"{at}.mlp.wo", d, inner)
    config = {
        "model_type": "bert",
        "num_hidden_layers": LAYERS,
        "hidden_size": d,
        "num_attention_heads": HEADS,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
    }
    return draw(shapes, seed), config


def classifier(seed: int, features: int = 2 * WIDTH, hidden: int = 6) -> dict[str, Tensor]:
    """The state dict of a classifier."""
    shapes = linear("hidden_layer", hidden, features) | linear("output_layer", 2, hidden)
    ones = {f"bn1.{name}": torch.ones(hidden) for name in ("weight", "running_var")}
    zeros = {f"bn1.{name}": torch.zeros(hidden) for name in ("bias", "running_mean")}
    return draw(shapes, seed) | ones | zeros | {"bn1.num_batches_tracked": torch.tensor(7)}


def save_esm2(path: Path, seed: int = 0) -> Path:
    """Write a published `.pt` file."""
    torch.save(fair_esm_file(seed), path)
    return path


def save_dnabert_s(folder: Path, seed: int = 0) -> Path:
    """Write a folder as the authors do, with the built-in tokenizer."""
    folder.mkdir()
    tensors, config = dnabert_s(seed)
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(config))
    built_in_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def save_embeddings(path: Path, ids: Sequence[str], seed: int = 0, **attributes) -> Path:
    """Write an embedding file with random vectors (N, WIDTH)."""
    vectors = np.random.default_rng(seed).standard_normal((len(ids), WIDTH), np.float32)
    with h5py.File(path, "w") as file:
        file.create_dataset("embeddings", data=vectors, chunks=(2, WIDTH))
        file.create_dataset("sequence_ids", data=list(ids), dtype=h5py.string_dtype())
        kind = {"format": "virnucpro-pl embeddings", "format_version": 1, "complete": True}
        file.attrs.update({**kind, **attributes})
    return path
