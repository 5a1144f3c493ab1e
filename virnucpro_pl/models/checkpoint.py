"""What a weights file or folder holds, told by its content and not by its name.

Nothing here unpickles more than an allow-list names, and tensors are mapped from disk where the
format allows it.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import pickle
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from virnucpro_pl.errors import WeightsError, listed
from virnucpro_pl.git_lfs import refuse_pointer

_ALLOWED = [
    argparse.Namespace,  # of fair-esm's files, and of Lightning's hyper-parameters
    (pathlib.PosixPath, "pathlib.PosixPath"),
    (pathlib.PosixPath, "pathlib._local.PosixPath"),
]
_STATE_DICTS = ("state_dict", "model_state_dict", "model", "module")
"""Under which of these names a training program keeps the tensors beside all else: Lightning's
`.ckpt`, PyTorch's own tutorials, fair-esm, DeepSpeed."""


class _NoObjectError(WeightsError):
    """A file that holds no JSON object."""


class Checkpoint(NamedTuple):
    """What a file or folder holds."""

    path: Path
    """The weights file, or the folder of several, for messages."""
    tensors: dict[str, Tensor]
    """Every tensor by its name in the file, mapped from disk where the format allows it."""
    config: argparse.Namespace | dict[str, Any] | None
    """Its own configuration: fair-esm's, or the content of config.json; None if it has none."""
    files: list[Path]
    """Files that the content hash covers."""
    is_config_unused: bool = False
    """Whether a config.json lies beside a single file that is no configuration of a model."""

    @property
    def config_file(self) -> Path:
        """Where a config.json lies, or would."""
        return self.files[0].parent / "config.json"

    @property
    def no_config(self) -> str:
        """Why there is no configuration, if there is none."""
        if self.is_config_unused:
            return "config.json beside it names no model_type and is not used"
        return "no config.json lies beside it"


def require(content: dict[str, Any], needed: dict[str, Any], where: Path, model: str) -> None:
    """Refuse the config.json of another architecture; an entry that is not there is as needed.

    Args:
        content: Of the file.
        needed: What its entries must be; null does for False.
        where: The file, for the message.
        model: What it is to be, such as `an ESM-2`.

    Raises:
        WeightsError: Names the entry, what it is and what it must be.
    """
    for key, value in needed.items():
        if content.get(key, value) not in (value, value or None):
            raise WeightsError(f"{where} is not {model}: {key} is {content[key]!r}, not {value!r}")


def read_checkpoint(path: Path) -> Checkpoint:
    """Read weights: a transformers folder, safetensors, or whatever torch has saved.

    A torch file may be a fair-esm `.pt` file, `{"cfg": {"model": Namespace}, "model": tensors}`, a
    state dict, or a training checkpoint such as Lightning's with a state dict within.

    Args:
        path: The folder, or one weights file; a config.json beside it is its configuration.

    Raises:
        WeightsError: If a file is missing or damaged.
    """
    files = _weight_files(path) if path.is_dir() else [path]
    tensors: dict[str, Tensor] = {}
    config: argparse.Namespace | dict[str, Any] | None = None
    for file in files:
        config, held = _read_weights(file)
        if doubled := sorted(tensors.keys() & held.keys()):
            raise WeightsError(f"{path} is damaged: several of its files have {listed(doubled)}")
        tensors |= held
    where = files[0] if len(files) == 1 else path
    beside = files[0].parent / "config.json"
    if config is None and path.is_dir():
        config, files = _read_json(beside), sorted([*files, beside])
    elif config is None and beside.is_file():
        config = _config_beside(beside)
        if config is None:
            return Checkpoint(where, tensors, None, files, is_config_unused=True)
        files = sorted([*files, beside])
    return Checkpoint(where, tensors, config, files)


def _read_weights(file: Path) -> tuple[argparse.Namespace | None, dict[str, Tensor]]:
    """A file's own configuration, if it is fair-esm's, and its tensors."""
    if file.suffix == ".safetensors" or _has_json_header(file):  # torch goes by that name, too
        try:
            refuse_pointer(file)
            return None, load_file(file)
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"{file} is damaged: {error}") from error
    content = read_torch_file(file, _ALLOWED)
    if not isinstance(content, dict):
        raise WeightsError(f"{file} is not a weights file: it holds a {type(content).__name__}")
    is_fair_esm = "cfg" in content and isinstance(content.get("model"), dict)
    config = _fair_esm_config(file, content["cfg"]) if is_fair_esm else None
    inner = (content[name] for name in _STATE_DICTS if isinstance(content.get(name), dict))
    return config, _tensors(file, next(inner, content))


def _has_json_header(file: Path) -> bool:
    """Tell whether it is safetensors: eight bytes of a length, then JSON."""
    try:
        with file.open("rb") as handle:
            return handle.read(9)[8:] == b"{"
    except OSError as error:
        raise WeightsError(f"{file} cannot be read: {error}") from error


def _fair_esm_config(file: Path, cfg: Any) -> argparse.Namespace:
    config = cfg.get("model") if isinstance(cfg, dict) else None
    if not isinstance(config, argparse.Namespace):
        raise WeightsError(f"{file} is not a fair-esm ESM-2 file: its cfg.model is no Namespace")
    return config


def is_plain(value: Any) -> bool:
    """Tell whether a value is a tensor whose numbers all lie in its file, one by one.

    One that is sparse, quantised or on no device is not, nor one that makes many numbers of few: a
    file of a kilobyte may ask for more memory than there is.
    """
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and not value.is_complex()
        and value.nbytes <= value.untyped_storage().nbytes()
    )


def _tensors(file: Path, content: dict[Any, Any]) -> dict[str, Tensor]:
    others = [str(name) for name, value in content.items() if not is_plain(value)]
    if others or not content:
        no_tensors = listed(others) or "there, for it is empty"
        raise WeightsError(f"{file} is not a weights file: no plain tensors are {no_tensors}")
    if nameless := [str(name) for name in content if not isinstance(name, str)]:
        raise WeightsError(
            f"{file} is not a weights file: no tensors' names are {listed(nameless)}"
        )
    return dict(content)


def read_torch_file(
    path: Path,
    allowed: Sequence[Any] = (),
    what: str = "weights file",
    *,
    checksums: bool = False,
) -> Any:
    """Unpickle a `.pt`, `.pth`, `.bin` or `.ckpt` file on the CPU: tensors and allowed classes.

    Args:
        path: A zip file (mapped) or one of the older format (read).
        allowed: Classes beyond tensors that the file may name.
        what: What messages call it.
        checksums: Whether to check those of a zip file, for which all of it is read: torch never
            does.

    Raises:
        WeightsError: If the file is missing, damaged, or wants any other class.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such {what}")
    try:
        refuse_pointer(path)
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(
                path, map_location="cpu", weights_only=True, mmap=_can_be_mapped(path, checksums)
            )
    except WeightsError:
        raise
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        fault = (
            f"wants to run {wanted[1]}, which is not allowed: save the tensors alone (state_dict)"
            if wanted
            else "is damaged"
        )
        raise WeightsError(f"{path} is not a plain {what}: it {fault}") from error
    except Exception as error:  # damaged bytes make torch raise whatever comes
        fault = f"{type(error).__name__}: {error}"
        raise WeightsError(f"{path} cannot be read as a {what}: {fault}") from error


def _can_be_mapped(path: Path, checksums: bool) -> bool:
    """Tell whether a file is a zip file whose members lie in it as they are.

    torch maps compressed members as if they were not, and trusts a damaged head of one.

    Raises:
        OSError, zipfile.BadZipFile: If it is damaged.
    """
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        members = file.infolist()
        for member in members:
            file.open(member).close()  # compares its head with the directory
        if checksums and (damaged := file.testzip()):
            raise zipfile.BadZipFile(f"the checksum of {damaged} is another one")
    return all(member.compress_type == zipfile.ZIP_STORED for member in members)


def _config_beside(file: Path) -> dict[str, Any] | None:
    """The config.json beside a single file; None if it is some other program's."""
    try:
        content = _read_json(file)
    except _NoObjectError:
        return None
    return content if "model_type" in content else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        refuse_pointer(path)
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise _NoObjectError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise _NoObjectError(f"{path} cannot be read: it holds no JSON object")
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
            if not isinstance(weight_map, dict) or not weight_map:
                raise WeightsError(f"{index} has no weight_map")
            named = sorted({str(name) for name in weight_map.values()})
            missing = [name for name in named if not (folder / name).is_file()]
            if missing:
                raise WeightsError(f"{folder} lacks {listed(missing)}, named by {index.name}")
            return [folder / name for name in named]
        if shards := sorted(folder.glob(pattern)):
            raise WeightsError(f"{folder} has {shards[0].name} but no {index.name}")
    raise WeightsError(f"{folder} holds neither model.safetensors nor pytorch_model.bin")
