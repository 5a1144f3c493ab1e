"""Weights from published files, from a folder, or seeded random ones, into a module on any device.

Nothing here unpickles more than an allow-list names, and no tensor is held twice: the module is
made on the meta device and each parameter is assigned once, from a mapped file where possible.
"""

from __future__ import annotations

import argparse
import json
import logging
import pickle
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import nn

from virnucpro_pl.errors import WeightsError, listed
from virnucpro_pl.models.files import SEED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

__all__ = [
    "Checkpoint",
    "assign",
    "assign_random",
    "read_fair_esm_file",
    "read_folder",
    "read_torch_file",
]

log = logging.getLogger(__name__)

_BLOCK = 4_194_301
"""Random numbers drawn once and reused from ever new offsets; a prime, so that no row repeats."""


class Checkpoint(NamedTuple):
    """What a file or folder holds."""

    tensors: dict[str, Tensor]
    """Every tensor by its name in the file, mapped from disk where the format allows it."""
    config: Any
    """The file's own configuration: a pickled object, or the content of config.json."""
    files: list[Path]
    """Files that the content hash covers."""


def read_torch_file(path: Path, allowed: Sequence[Any] = (), what: str = "weights file") -> Any:
    """Unpickle a `.pt`, `.pth` or `.bin` file on the CPU, tensors and allowed classes only.

    Args:
        path: A zip file (mapped) or one of the older format (read).
        allowed: Classes beyond tensors that the file may name.
        what: What messages call it.

    Raises:
        WeightsError: If the file is missing, damaged, or wants any other class.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such {what}")
    try:
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        fault = f"wants to run {wanted[1]}, which is not allowed" if wanted else "is damaged"
        raise WeightsError(f"{path} is not a plain {what}: it {fault}") from error
    except Exception as error:  # damaged bytes make torch raise whatever comes
        fault = f"{type(error).__name__}: {error}"
        raise WeightsError(f"{path} cannot be read as a {what}: {fault}") from error


def read_fair_esm_file(path: Path) -> Checkpoint:
    """Read a fair-esm `.pt` file: `{"cfg": {"model": Namespace}, "model": tensors}`.

    Raises:
        WeightsError: If it is not one.
    """
    content = read_torch_file(path, [argparse.Namespace])
    try:
        tensors, config = _tensors(path, content["model"]), content["cfg"]["model"]
    except (KeyError, TypeError, IndexError) as error:
        raise WeightsError(
            f"{path} is not a fair-esm ESM-2 file: no entry {error} (expected cfg.model and model)"
        ) from error
    if not isinstance(config, argparse.Namespace):
        raise WeightsError(f"{path} is not a fair-esm ESM-2 file: its cfg.model is no Namespace")
    return Checkpoint(tensors, config, [path])


def read_folder(path: Path) -> Checkpoint:
    """Read a transformers checkpoint folder: config.json and safetensors or .bin files.

    Args:
        path: The folder, or one weights file that lies beside its config.json.

    Raises:
        WeightsError: If a file is missing or damaged.
    """
    files = _weight_files(path) if path.is_dir() else [path]
    config_file = files[0].parent / "config.json"
    config = _read_json(config_file)
    tensors: dict[str, Tensor] = {}
    for file in files:
        if file.suffix == ".safetensors":
            try:
                tensors.update(load_file(file))
            except (OSError, ValueError, RuntimeError) as error:
                raise WeightsError(f"{file} cannot be read: {error}") from error
            except Exception as error:  # safetensors' own error class derives from Exception only
                if type(error).__name__ != "SafetensorError":
                    raise
                raise WeightsError(f"{file} is damaged: {error}") from error
        else:
            tensors.update(_tensors(file, read_torch_file(file)))
    return Checkpoint(tensors, config, sorted([*files, config_file]))


def _tensors(path: Path, content: Any) -> dict[str, Tensor]:
    if not isinstance(content, dict):
        raise WeightsError(f"{path} is not a weights file: it holds a {type(content).__name__}")
    others = [str(name) for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise WeightsError(f"{path} is not a weights file: no tensors are {listed(others)}")
    return dict(content)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} cannot be read: it holds no JSON object")
    return content


def _weight_files(folder: Path) -> list[Path]:
    for single, pattern in (
        ("model.safetensors", "model-*.safetensors"),
        ("pytorch_model.bin", "pytorch_model-*.bin"),
    ):
        if (folder / single).is_file():
            return [folder / single]
        index = folder / f"{single}.index.json"
        if index.is_file():
            weight_map = _read_json(index).get("weight_map")
            if not isinstance(weight_map, dict):
                raise WeightsError(f"{index} has no weight_map")
            named = sorted({str(name) for name in weight_map.values()})
            missing = [name for name in named if not (folder / name).is_file()]
            if missing:
                raise WeightsError(f"{folder} lacks {listed(missing)}, named by {index.name}")
            return [folder / name for name in named]
        if shards := sorted(folder.glob(pattern)):
            raise WeightsError(f"{folder} has {shards[0].name} but no {index.name}")
    raise WeightsError(f"{folder} holds neither model.safetensors nor pytorch_model.bin")


def assign(
    module: nn.Module,
    checkpoint: Checkpoint,
    names_in_file: Callable[[str], list[str]],
    *,
    unused: str,
    device: torch.device,
    matrix_dtype: torch.dtype,
) -> None:
    """Fill a module on the meta device from a checkpoint; every difference is named.

    Args:
        module: Its parameters are replaced.
        checkpoint: From `read_folder` or `read_fair_esm_file`.
        names_in_file: The tensors that, one below the other, make up a parameter.
        unused: Regular expression of tensors that the module does not need.
        device: Where the parameters go.
        matrix_dtype: Dtype of the linear layers' parameters; all others are fp32.

    Raises:
        WeightsError: If a tensor is missing, unexpected or of another shape.
    """
    where = checkpoint.files[0]
    sources = {name: names_in_file(name) for name, _ in module.named_parameters()}
    wanted = {source for parts in sources.values() for source in parts}
    missing = sorted(wanted - checkpoint.tensors.keys())
    extra = sorted(k for k in checkpoint.tensors.keys() - wanted if not re.fullmatch(unused, k))
    if missing or extra:
        raise WeightsError(
            f"{where} does not fit the model: missing {listed(missing) or 'nothing'}; "
            f"unexpected {listed(extra) or 'nothing'}"
        )
    for owner, short, name, parameter in _slots(module):
        parts = [checkpoint.tensors[source] for source in sources[name]]
        rows = sum(part.shape[0] if part.ndim else 0 for part in parts)
        if any((rows, *part.shape[1:]) != tuple(parameter.shape) for part in parts):
            raise WeightsError(
                f"{where}: {listed(sources[name])} has shape {[tuple(p.shape) for p in parts]}, "
                f"the model needs {tuple(parameter.shape)}"
            )
        dtype = matrix_dtype if isinstance(owner, nn.Linear) else torch.float32
        moved = [part.to(device, non_blocking=True).to(dtype) for part in parts]
        _set(owner, short, moved[0] if len(moved) == 1 else torch.cat(moved))


def assign_random(
    module: nn.Module, *, device: torch.device, matrix_dtype: torch.dtype, seed: int = SEED
) -> None:
    """Fill a module on the meta device with seeded random numbers, the same on every machine.

    Linear layers are normal with variance 1 / inputs, embeddings standard normal, norms the
    identity. Drawing billions of numbers takes a minute; reusing one block from ever new offsets
    takes a second.

    Args:
        module: Its parameters are replaced.
        device: Where the parameters go.
        matrix_dtype: Dtype of the linear layers' parameters; all others are fp32.
        seed: Seed of the block.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    # Neither dtype nor device are the defaults, which a true precision changes meanwhile.
    block = torch.randn(_BLOCK, generator=generator, dtype=torch.float32, device="cpu").to(device)
    offset = 0
    for owner, short, _, parameter in _slots(module):
        if isinstance(owner, nn.LayerNorm | nn.BatchNorm1d):
            value = torch.full(parameter.shape, float(short == "weight"), device=device)
        else:
            count = parameter.numel()
            index = torch.arange(offset, offset + count, device=device).remainder_(_BLOCK)
            value = block[index].view(parameter.shape)
            if isinstance(owner, nn.Linear):
                value *= owner.in_features**-0.5
            offset += count
        dtype = matrix_dtype if isinstance(owner, nn.Linear) else torch.float32
        _set(owner, short, value.to(dtype))


def _slots(module: nn.Module) -> list[tuple[nn.Module, str, str, Tensor]]:
    return [
        (owner, short, f"{prefix}.{short}" if prefix else short, parameter)
        for prefix, owner in module.named_modules()
        for short, parameter in owner.named_parameters(recurse=False)
    ]


def _set(owner: nn.Module, short: str, value: Tensor) -> None:
    setattr(owner, short, nn.Parameter(value, requires_grad=False))
