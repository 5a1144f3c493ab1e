"""Weights from a checkpoint, or seeded random ones, into a module on any device.

No tensor is held twice: the module is made on the meta device and each parameter is assigned once,
from a mapped file where possible.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from virnucpro_pl.errors import WeightsError, listed
from virnucpro_pl.models.checkpoint import Checkpoint
from virnucpro_pl.models.download import SEED

log = logging.getLogger(__name__)

_BLOCK = 4_194_301
"""Random numbers drawn once and reused from ever new offsets; a prime, so that no row repeats."""
_WRAPPERS = {"_orig_mod", "module", "model", "encoder", "sentence_encoder", "esm", "bert"}
"""Names of modules that hold an encoder, in whatever order, and so stand before its tensors."""
_LAYERS, _LARGEST = 1000, 1_000_000
"""Bounds of layers and of other sizes, so that no file makes a network that is endless."""
_ENCODER = re.compile(r"embed_|embeddings\.|emb_layer_norm|encoder\.|layers?\.")
"""How tensors of an encoder begin, behind their prefix; heads never do."""
_ADAPTER = re.compile(r"lora_|adapter", re.IGNORECASE)
_ADAPTERS = re.compile(r"(invertible_)?adapters\.")
"""How adapters begin that a library puts at the top of an encoder or of the model around it."""
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_Network = TypeVar("_Network", bound=nn.Module)
_TENSORFLOW = {".LayerNorm.gamma": ".LayerNorm.weight", ".LayerNorm.beta": ".LayerNorm.bias"}
"""Names under which transformers saves the norms of ESM, and saved those of BERT."""


def on_meta(make: Callable[[], _Network]) -> _Network:
    """Make a network without its numbers, for inference; `assign` or `assign_random` fill it."""
    with torch.device("meta"):
        network = make()
    return network.eval().requires_grad_(False)


def assign(
    module: nn.Module,
    checkpoint: Checkpoint,
    names_in_file: Callable[[str], list[str]],
    *,
    unused: str,
    device: torch.device,
    matrix_dtype: torch.dtype,
) -> str:
    """Fill a module on the meta device from a checkpoint that holds all of it.

    All of its tensors stand behind one prefix, if any, made of the names of modules that hold them.
    What else the file has, such as the heads of a fine-tuned model, is left out, and a line in the
    log names it.

    Args:
        module: Its parameters are replaced.
        checkpoint: From `read_checkpoint`.
        names_in_file: The tensors, prefix removed, that one below the other make up a parameter.
        unused: Regular expression of tensors of the encoder that change nothing it computes.
        device: Where the parameters go.
        matrix_dtype: Dtype of the linear layers' parameters; all others are fp32.

    Returns:
        The prefix.

    Raises:
        WeightsError: If a tensor is missing, doubled, unexpected, of another shape, or of a dtype
            that is no plain number's, such as quantised weights have.
    """
    sources = {name: names_in_file(name) for name, _ in module.named_parameters()}
    wanted = {source for parts in sources.values() for source in parts}
    prefix, keys = _find_keys(checkpoint, wanted, unused)
    if checkpoint.is_config_unused:
        log.info("%s: %s", checkpoint.path, checkpoint.no_config)
    for owner, short, name, parameter in _slots(module):
        own = [keys[source] for source in sources[name]]
        parts = [checkpoint.tensors[key] for key in own]
        shape = (parameter.shape[0] // len(parts), *parameter.shape[1:])
        for key, part in zip(own, parts, strict=True):
            if tuple(part.shape) != shape:
                raise WeightsError(
                    f"{checkpoint.path}: {key} has shape {tuple(part.shape)}, the model needs "
                    f"{shape}"
                )
            if part.dtype not in _DTYPES:
                raise WeightsError(
                    f"{checkpoint.path}: {key} holds {part.dtype}, as quantised weights do: give "
                    "the model in FP32, FP16 or BF16"
                )
        dtype = matrix_dtype if isinstance(owner, nn.Linear) else torch.float32
        moved = [part.to(device, non_blocking=True).to(dtype) for part in parts]
        _set(owner, short, moved[0] if len(moved) == 1 else torch.cat(moved))
    return prefix


def _find_keys(checkpoint: Checkpoint, wanted: set[str], unused: str) -> tuple[str, dict[str, str]]:
    """The prefix, and the file's own key of each tensor wanted; every difference is named."""
    by_prefix: dict[str, dict[str, str]] = defaultdict(dict)
    first: dict[str, str] = {}
    for key in checkpoint.tensors:
        for prefix, name in _readings(key):
            if name in wanted:
                if name in first:
                    raise WeightsError(
                        f"{checkpoint.path} holds a tensor of the encoder twice, as {first[name]} "
                        f"and as {key}"
                    )
                first[name] = by_prefix[prefix][name] = key
    prefix = max(by_prefix, key=lambda p: len(by_prefix[p]), default="")
    keys = by_prefix[prefix]
    missing = [prefix + name for name in sorted(wanted - keys.keys())]
    rest = sorted(checkpoint.tensors.keys() - keys.values())
    names = {key: _modern(key).removeprefix(prefix) for key in rest}
    rest = [key for key in rest if not re.fullmatch(unused, names[key])]
    extra = [
        key
        for key in rest
        if key in first.values()
        or "lora_" in key
        or any(_ADAPTERS.match(name) for _, name in _readings(key))
        or (key.startswith(prefix) and _is_of_encoder(names[key], prefix))
    ]
    if missing or extra:
        adapters = any(map(_ADAPTER.search, extra))
        advice = ". Merge LoRA or adapter weights into the model first" if adapters else ""
        held = "" if keys else f". What it holds: {listed(sorted(checkpoint.tensors), 3)}"
        raise WeightsError(
            f"{checkpoint.path} does not fit the model: missing {listed(missing) or 'nothing'}; "
            f"unexpected {listed(extra) or 'nothing'}{advice}{held}"
        )
    if rest:
        heads = dict.fromkeys(map(_head, rest))
        log.info("%s: left out %s, no part of the encoder", checkpoint.path, ", ".join(heads))
    return prefix, keys


def _is_of_encoder(name: str, prefix: str) -> bool:
    """Tell a tensor of the encoder from a head's; where it has a module, adapters in it are its."""
    return bool(_ENCODER.match(name) or (prefix and _ADAPTER.search(name)))


def _readings(key: str) -> Iterator[tuple[str, str]]:
    """Each way to split a key into a prefix of wrapping modules and a name."""
    prefix, name = "", _modern(key)
    while True:
        yield prefix, name
        word, dot, name = name.partition(".")
        if not dot or word not in _WRAPPERS:
            return
        prefix += word + dot


def _modern(key: str) -> str:
    for old, new in _TENSORFLOW.items():
        key = key.replace(old, new)
    return key


def _head(key: str) -> str:
    """What a message calls all tensors of a head: `esm.contact_head.*`."""
    *_, (prefix, name) = _readings(key)
    word, dot, _ = name.partition(".")
    return f"{prefix}{word}{dot}{'*' if dot else ''}"


def bare_sizes(checkpoint: Checkpoint, table: str, layer: str) -> tuple[int, int, int]:
    """Layers, tokens and width of an encoder of which only the tensors tell.

    Args:
        checkpoint: Without a configuration.
        table: Name of the embedding table, prefix removed.
        layer: Regular expression of a tensor that each layer has, with a group for its number.

    Raises:
        WeightsError: If there are no such tensors.
    """
    pattern = re.compile(rf"(?:.*\.)?{layer}")
    tables = [t for key, t in checkpoint.tensors.items() if f".{key}".endswith(f".{table}")]
    shapes = [tuple(t.shape) for t in tables if t.ndim == 2]
    numbers = [int(match[1]) for match in map(pattern.fullmatch, checkpoint.tensors) if match]
    if not shapes or not numbers:
        raise WeightsError(
            f"{checkpoint.path} does not fit the model: missing {table} or its layers, and "
            f"{checkpoint.no_config}"
        )
    rows, width = shapes[0]
    return max(numbers) + 1, rows, width


def sizes_in(content: Mapping[str, Any], names: Sequence[str], where: Path) -> list[int]:
    """Sizes of an encoder as its configuration has them, before anything so large is made.

    Args:
        content: The configuration; it has all names.
        names: Of the sizes, that of the layers first.
        where: Its file, for messages.

    Raises:
        WeightsError: If one is no whole number from 1, or larger than any encoder's.
    """
    sizes: list[Any] = [content[name] for name in names]
    for name, size in zip(names, sizes, strict=True):
        largest = _LAYERS if name == names[0] else _LARGEST
        if type(size) is not int or not 1 <= size <= largest:
            raise WeightsError(f"{where}: {name} is {size!r}, no whole number from 1 to {largest}")
    return sizes


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
