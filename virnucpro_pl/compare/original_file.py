"""The `.pt` files in which VirNucPro (Li et al. 2025) leaves its embeddings.

Each is a dict of ids and `data`, whose form differs:

- `*_ESM.pt`: `proteins`, and a list of tensors (2560,).
- `*_DNABERT_S.pt`: `nucleotide`, and a list of dicts with a list of numbers `mean_representation`.
- `*_merged.pt`: `ids`, and one tensor (N, 3328): DNABERT-S, then ESM-2.

VirNucPro begins a new file after 10,000 sequences; a folder of such files is read as one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from virnucpro_pl.errors import InputError
from virnucpro_pl.models.checkpoint import is_plain, read_torch_file

KINDS = {"proteins": "ESM-2", "nucleotide": "DNABERT-S", "ids": "merged"}
"""What a file holds, by the name of its ids."""
_WHAT = "file of VirNucPro embeddings"


class OriginalFile:
    """Embeddings of one file or of all files of a folder, in the order of their names.

    Tensors are mapped from disk; numbers that lie in the file as Python objects are copied to a
    temporary file and mapped from there.

    Attributes:
        path: The file or folder.
        kind: One of the values of KINDS.
        width: Numbers of a vector.
        lengths: None: these files do not tell them.
        failed: Empty: these files have no such list.
    """

    lengths = None

    def __init__(self, path: Path) -> None:
        """Read the ids and map the vectors.

        Args:
            path: A `.pt` file, or a folder of them.

        Raises:
            InputError: If a file is damaged, of another form, or unlike the others of the folder.
        """
        self.path = path
        self.failed: NDArray[np.int64] = np.empty(0, np.int64)
        files = sorted(path.glob("*.pt")) if path.is_dir() else [path]
        if not files:
            raise InputError(f"{path} is a folder without .pt files: name the file to compare")
        parts = [_read(file) for file in files]
        kinds = sorted({kind for kind, _, _ in parts})
        widths = sorted({len(vectors[0]) for _, _, vectors in parts if len(vectors)})
        if len(kinds) > 1 or len(widths) > 1:
            raise InputError(f"{path} holds files of several kinds: {kinds} of widths {widths}")
        self.kind = kinds[0]
        self.width = widths[0] if widths else 0
        self._ids = [name for _, ids, _ in parts for name in ids]
        self._vectors = [vectors for _, _, vectors in parts]
        self._starts = np.cumsum([0, *map(len, self._vectors)])

    def __len__(self) -> int:
        """Count the rows."""
        return len(self._ids)

    def id_blocks(self) -> Iterator[list[bytes]]:
        """Yield all ids in order, in one block."""
        if self._ids:
            yield [name.encode() for name in self._ids]

    def rows(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Vectors of some rows, in the order asked for."""
        vectors = np.empty((len(rows), self.width), np.float32)
        part = np.searchsorted(self._starts, rows, "right") - 1
        for number in np.unique(part):
            where = np.flatnonzero(part == number)
            within = (rows[where] - self._starts[number]).tolist()
            source = self._vectors[number]
            chosen = source[within] if isinstance(source, Tensor) else [source[i] for i in within]
            vectors[where] = torch.stack(tuple(chosen)).float().numpy()
        return vectors


def _read(path: Path) -> tuple[str, list[str], Tensor | list[Tensor]]:
    """Give kind, ids and vectors of one file: (N, D), or N of (D,)."""
    content = read_torch_file(path, what=_WHAT)
    keys = sorted(content) if isinstance(content, dict) else type(content).__name__
    named = [key for key in KINDS if key in keys]
    if not isinstance(content, dict) or len(named) != 1 or "data" not in content:
        raise InputError(
            f"{path} is no {_WHAT}: it holds {keys}, not data with one of {sorted(KINDS)}"
        )
    ids, vectors = content[named[0]], content["data"]
    if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids):
        raise InputError(f"{path}: {named[0]} is not a list of ids")
    if isinstance(vectors, list):
        vectors = _listed(path, ids, vectors)
    elif not is_plain(vectors):
        raise InputError(f"{path}: data is a {type(vectors).__name__}, not vectors")
    if isinstance(vectors, Tensor) and (vectors.ndim != 2 or not vectors.is_floating_point()):
        raise InputError(f"{path}: data is {vectors.dtype} {tuple(vectors.shape)}, not vectors")
    if len(vectors) != len(ids):
        raise InputError(f"{path} has {len(vectors)} vectors, but {len(ids)} ids")
    return KINDS[named[0]], ids, vectors


def _listed(path: Path, ids: list[str], data: list[Any]) -> Tensor | list[Tensor]:
    """Vectors that lie in a list: mapped tensors as they are, Python numbers copied to disk."""
    if data and isinstance(data[0], dict):
        entries = [entry if isinstance(entry, dict) else {} for entry in data]
        if [entry.get("label") for entry in entries] != ids:
            raise InputError(f"{path}: labels and ids are not the same")
        data = [entry.get("mean_representation") for entry in entries]
    widths = {len(v) if isinstance(v, list) or (is_plain(v) and v.ndim) else 0 for v in data}
    if len(widths) > 1 or 0 in widths:
        raise InputError(f"{path}: data holds vectors of several widths: {sorted(widths)}")
    if all(isinstance(vector, Tensor) and vector.ndim == 1 for vector in data):
        return data
    with tempfile.TemporaryFile() as scratch:
        try:
            for vector in data:
                scratch.write(np.asarray(vector, np.float32).tobytes())
        except (ValueError, TypeError, OverflowError) as error:
            raise InputError(f"{path}: data holds what is no vector: {error}") from error
        scratch.flush()
        mapped = np.memmap(scratch, np.float32, "c", shape=(len(data), widths.pop()))
        return torch.from_numpy(mapped)
