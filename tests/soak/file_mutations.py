"""Weights and embedding files that somebody else wrote, damaged, or means ill with.

Each function takes a `random.Random` and draws from it alone.
"""

import argparse
import json
import os
import random
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from tests.soak.mutations import spoil

VALUES = [
    None, True, False, 0, 1, -1, 2, 3, 2**31, 2**63, 10**30, 0.5, 2.0, 1e308, float("nan"),
    float("inf"), "", "2", "false", "\ud800", "\0", [], [2], {}, {"a": 1}, "x" * 100_000,
]  # fmt: skip
"""What stands in place of a number, a name or a table."""


class Bait:
    """Unpickled by whoever runs what a pickle asks for, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.path,)


def pick(rng: random.Random, edits: dict[str, Callable[[], Any]]) -> str:
    """Do one of some things, and name it."""
    what = rng.choice(sorted(edits))
    edits[what]()
    return what


# Tensors ------------------------------------------------------------------------------------------


def edit_tensors(rng: random.Random, tensors: dict[Any, Any], bait: Path) -> str:
    """Change a dictionary of tensors; some changes mean nothing."""
    if not tensors:
        return ""
    name = rng.choice(sorted(map(str, tensors)))
    tensor = tensors.get(name)
    if not isinstance(tensor, Tensor) or tensor.numel() > 1_000_000:
        return ""
    other = rng.choice(sorted(map(str, tensors)))

    def put(value: Any) -> Callable[[], None]:
        return lambda: tensors.update({name: value})

    def huge() -> None:
        sizes = [rng.choice([3, 10**4, 10**7, 2**30])] * max(tensor.ndim, 1)
        tensors[name] = torch.zeros(1).expand(*sizes)

    def spoil_number() -> None:
        changed = tensor.float().clone()
        if changed.numel():
            changed.view(-1)[rng.randrange(changed.numel())] = rng.choice([torch.nan, torch.inf, 7])
        tensors[name] = changed

    def cast() -> None:
        kinds = ["half", "double", "bfloat16", "int", "bool", "cfloat", "char"]
        tensors[name] = getattr(tensor, rng.choice(kinds))()

    def quantise() -> None:
        tensors[name] = torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8)

    edits: dict[str, Callable[[], Any]] = {
        "missing": lambda: tensors.pop(name),
        "extra head": lambda: tensors.update({"lm_head.dense.weight": torch.ones(2, 2)}),
        "extra layer": lambda: tensors.update({name.replace("1", "2") + ".x": tensor}),
        "renamed": lambda: tensors.update({f"model.{name}": tensors.pop(name)}),
        "all renamed": lambda: [
            tensors.update({f"module.{key}": tensors.pop(key)}) for key in list(tensors)
        ],
        "twice": lambda: tensors.update({f"model.{name}": tensor}),
        "LoRA": lambda: tensors.update({f"{name}.lora_A": torch.ones(2, 2)}),
        "swapped": lambda: tensors.update({name: tensors[other], other: tensor}),
        "huge": huge,
        "transposed": put(tensor.T if tensor.ndim == 2 else tensor[None]),
        "longer": put(torch.cat([tensor, tensor]) if tensor.ndim else tensor),
        "empty": put(torch.zeros(0)),
        "scalar": put(torch.tensor(1.0)),
        "a view": put(torch.cat([tensor.reshape(-1)] * 2)[tensor.numel() :].view(tensor.shape)),
        "a number": spoil_number,
        "a NaN": put(torch.full_like(tensor.float(), torch.nan)),
        "dtype": cast,
        "sparse": put(tensor.float().to_sparse()),
        "quantised": quantise,
        "on meta": put(tensor.to("meta")),
        "no tensor": put(rng.choice(VALUES)),
        "name": lambda: tensors.update({rng.choice([0, None, ("a",), True, "\ud800"]): tensor}),
        "parameter": put(torch.nn.Parameter(tensor.float())),
        "code": put(Bait(bait)),
        "an ordered one": lambda: tensors.update(_metadata=OrderedDict(version=1)),
    }
    return pick(rng, edits)


def save_torch(rng: random.Random, content: Any, path: Path) -> str:
    """Save in either format of torch, and do something to the zip file now and then."""
    zipped = rng.random() < 0.75
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    if not zipped:
        return "old format"
    if rng.random() < 0.25:
        return rewrite_zip(rng, path)
    return ""


def rewrite_zip(rng: random.Random, path: Path) -> str:
    """Change members of a zip file."""
    with zipfile.ZipFile(path) as file:
        members = [(info.filename, file.read(info)) for info in file.infolist()]
    at = rng.randrange(len(members))
    name, data = members[at]
    method = zipfile.ZIP_STORED
    edits: dict[str, Callable[[], Any]] = {
        "same": lambda: None,
        "member lost": lambda: members.pop(at),
        "member renamed": lambda: members.__setitem__(at, (f"x/{name}", data)),
        "member cut": lambda: members.__setitem__(at, (name, data[: len(data) // 2])),
        "member longer": lambda: members.__setitem__(at, (name, data + bytes(1000))),
        "member twice": lambda: members.append((name, data)),
        "member above": lambda: members.append((f"../../{path.name}.above", b"x")),
        "big endian": lambda: members.append(
            (f"{members[0][0].partition('/')[0]}/byteorder", b"big")
        ),
        "order": lambda: rng.shuffle(members),
        "deflated": lambda: None,
    }
    what = pick(rng, edits)
    if what == "deflated":
        method = zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in members:
            file.writestr(zipfile.ZipInfo(name), data, method)
    return f"zip, {what}"


def spoil_file(rng: random.Random, path: Path) -> str:
    """Change some bytes of a file."""
    data, what = spoil(rng, path.read_bytes())
    path.write_bytes(data)
    return what


# JSON ---------------------------------------------------------------------------------------------


def edit_table(rng: random.Random, table: dict[str, Any]) -> str:
    """Change an entry of a configuration."""
    key = rng.choice(sorted(table))
    edits: dict[str, Callable[[], Any]] = {
        "missing": lambda: table.pop(key),
        "other": lambda: table.update({key: rng.choice(VALUES)}),
        "as text": lambda: table.update({key: str(table[key])}),
        "as a float": lambda: (
            table.update({key: float(table[key])}) if isinstance(table[key], int) else None
        ),
        "one more": lambda: (
            table.update({key: table[key] + 1}) if isinstance(table[key], int) else None
        ),
        "extra": lambda: table.update(extra=rng.choice(VALUES)),
    }
    return f"{key} {pick(rng, edits)}"


def write_json(rng: random.Random, content: Any, path: Path) -> str:
    """Write JSON as others do, or what is none."""
    text = json.dumps(content)
    texts = {
        "plain": text,
        "indented": json.dumps(content, indent=1),
        "nested too deeply": "[" * 100_000,
        "deep within": text[:-1] + ', "z": ' + '{"a":' * 60_000 + "1" + "}" * 60_000 + "}",
        "a long number": text[:-1] + ', "z": ' + "9" * 10_000 + "}",
        "a key twice": text[:-1] + ", " + text[1:],
        "no object": "[]",
        "empty": "",
        "BOM": "\ufeff" + text,
        "NULs": "\0" * 100,
        "not closed": text[:-1],
    }
    what = rng.choice(["plain", "plain", "plain", *sorted(texts)])
    raw = texts[what].encode()
    if rng.random() < 0.05:
        what, raw = "UTF-16", text.encode("utf-16")
    path.write_bytes(raw)
    return what if what != "plain" else ""


def edit_namespace(rng: random.Random, namespace: argparse.Namespace) -> str:
    """Change a configuration of fair-esm."""
    return edit_table(rng, vars(namespace))


# HDF5 ---------------------------------------------------------------------------------------------


def edit_hdf5(rng: random.Random, path: Path) -> str:
    """Change datasets and attributes of an embedding file."""
    with h5py.File(path, "r+") as file:
        ids = file["sequence_ids"].asstr()[:].tolist()
        vectors = file["embeddings"][:]
        name = rng.choice(["embeddings", "sequence_ids", "lengths", "failed"])

        def put(**options: Any) -> Callable[[], Any]:
            def replace() -> None:
                if name in file:
                    del file[name]
                file.create_dataset(name, **options)

            return replace

        def link(to: Any) -> Callable[[], Any]:
            def replace() -> None:
                if name in file:
                    del file[name]
                file[name] = to

            return replace

        def rename() -> None:
            row = rng.randrange(len(ids))
            ids[row] = rng.choice(["", "\t", "a\nb", ids[0], "\u00fc", "x" * 70_000, "a\x7fb"])
            del file["sequence_ids"]
            file.create_dataset("sequence_ids", data=ids, dtype=h5py.string_dtype())

        count = len(ids)
        key = rng.choice([*file.attrs, "chunk_length", "model", "layer"])
        with h5py.File(path.with_name("other.h5"), "w") as other:
            other["embeddings"] = vectors + 1
            other.create_dataset("sequence_ids", data=ids, dtype=h5py.string_dtype())
        values: list[Any] = [0, 1, 2, True, "x", 500, -5, 0.5, [1, 2], b"\xff", "", h5py.Empty("f")]
        edits: dict[str, Callable[[], Any]] = {
            "missing": lambda: file.pop(name, None),
            "group": link(file.create_group("a group")),
            "soft link to nothing": link(h5py.SoftLink("/nowhere")),
            "soft link to itself": link(h5py.SoftLink(f"/{name}")),
            "external link": link(h5py.ExternalLink("other.h5", f"/{name}")),
            "external link to nothing": link(h5py.ExternalLink("nowhere.h5", "/x")),
            "scalar": put(data=1.0),
            "null": put(data=h5py.Empty("f4")),
            "whole numbers": put(data=np.arange(count)),
            "other count": put(data=np.ones((count + 1, 4), np.float32)),
            "no width": put(data=np.ones((count, 0), np.float32)),
            "three dimensions": put(data=np.ones((count, 2, 2))),
            "doubles": put(data=vectors.astype(np.float64)),
            "halves": put(data=vectors.astype(np.float16)),
            "big endian": put(data=vectors.astype(">f4")),
            "complex": put(data=vectors.astype(np.complex64)),
            "long doubles": put(data=vectors.astype(np.longdouble)),
            "gzip": put(data=vectors, compression="gzip", chunks=True),
            "fletcher32": put(data=vectors, fletcher32=True, chunks=True),
            "scale-offset": put(data=vectors, scaleoffset=2, chunks=True),
            "huge and unwritten": put(shape=(count, 10**9), dtype="f4", chunks=(1, 1024)),
            "long and unwritten": put(shape=(10**10, 4), dtype="f4", chunks=(1024, 4)),
            "long contiguous": put(shape=(10**10,), dtype="S8"),
            "fixed text": put(data=np.array(ids, "S")),
            "objects": put(
                shape=(count,), dtype=h5py.vlen_dtype(np.int32), data=[np.arange(3)] * count
            ),
            "references": put(shape=(count,), dtype=h5py.ref_dtype),
            "compound": put(data=np.zeros(count, [("a", "f4"), ("b", "i4")])),
            "minus one": put(data=np.full(count, -1)),
            "unsigned": put(data=np.full(count, 2**63, np.uint64)),
            "names": rename,
            "attribute": lambda: file.attrs.__setitem__(key, rng.choice(values)),
            "attribute lost": lambda: file.attrs.pop(key, None),
            "truncated records": lambda: file["embeddings"].attrs.update(truncated_records=1),
        }
        return f"{name}: {pick(rng, edits)}"
