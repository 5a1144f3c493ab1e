"""What made features: embedders, layers, pooling; those that a classifier learnt from and others.

Each embedder is told by its name in VirNucPro, and what is known of it by the names of the
attributes of embedding files. What is unknown is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from virnucpro_pl.embeddings.embedding_file import EmbeddingFile
from virnucpro_pl.errors import UsageError
from virnucpro_pl.input.orfs import MEAN_OF_RESIDUES, POOLED_RESIDUES, POOLING

Known = Mapping[str, str | None]
"""What is known of one embedder; None for what a run will know later."""
TITLES = {"dnabert_s": "DNABERT-S", "esm2": "ESM-2"}
"""Both embedders, in the order of their features."""
PRECISION = "precision"
"""What may differ between features that are used together."""
_SHARED = ("model", "weights_sha256", "layer", "pooling")
FIELDS = {"dnabert_s": (*_SHARED, "tokenizer_sha256"), "esm2": _SHARED}
"""What must not differ, of each embedder."""
_WORDS = {
    "weights_sha256": "SHA-256 of the weights",
    "tokenizer_sha256": "SHA-256 of the tokenizer",
}


def origin_of(file: EmbeddingFile) -> dict[str, str]:
    """What an embedding file tells of how its vectors were made."""
    attributes = file.attributes
    if "model_name" in attributes:  # as other programs say it
        attributes.setdefault("model", attributes["model_name"])
    names = (*FIELDS["dnabert_s"], PRECISION)
    return {name: _text(attributes[name]) for name in names if name in attributes}


def longest_of(file: EmbeddingFile) -> int | None:
    """Letters of a file's longest sequence; None if it does not tell."""
    lengths = file.lengths
    return None if lengths is None else int(np.max(lengths, initial=0))


def differing(
    embedder: str, one: Known, other: Known, longest: int | None
) -> tuple[list[str], list[str]]:
    """Compare how features of one embedder were made.

    Args:
        embedder: `dnabert_s` or `esm2`.
        one: What is known of it on one side.
        other: And on the other.
        longest: Letters of the longest sequence on the other side; None if it is not known. Up to
            1,024 residues VirNucPro's mean of a protein is the mean of all residues.

    Returns:
        The fields that differ, and those of which it cannot be told, since they are not known. A
        SHA-256 is not among them where the names differ.
    """
    differ, unknown = [], []
    for field in FIELDS[embedder]:
        if field not in one or field not in other:
            unknown.append(field)
        elif one[field] == other[field] or None in (one[field], other[field]):
            continue
        elif {one[field], other[field]} != {MEAN_OF_RESIDUES, POOLING}:
            differ.append(field)
        elif longest is None:
            unknown.append(field)
        elif longest > POOLED_RESIDUES:
            differ.append(field)
    if "model" in differ:
        differ = [field for field in differ if not field.endswith("sha256")]
    return differ, unknown


def common_origin(files: Sequence[EmbeddingFile]) -> dict[str, str]:
    """What all of some files tell alike of how their vectors were made.

    Of two kinds of pooling, which are the same for what these files hold, the first one's.
    """
    first, *rest = map(origin_of, files)
    everywhere = set(first).intersection(*rest)
    return {
        name: value
        for name, value in first.items()
        if name in everywhere and (name == "pooling" or all(o[name] == value for o in rest))
    }


def check_origin(
    trained: Mapping[str, Known],
    given: Mapping[str, Known],
    *,
    source: str,
    longest: int | None,
    advice: str,
) -> list[str]:
    """Refuse features that are made in another way than those that a classifier learnt from.

    Args:
        trained: How those were made, by embedder.
        given: How these are made.
        source: The classifier's file.
        longest: Residues of the longest protein, see `differing`.
        advice: What to do, for the message.

    Returns:
        What could not be compared, in words.

    Raises:
        UsageError: With all that differs.
    """
    wrong, unknown = [], []
    for name, title in TITLES.items():
        one, other = trained.get(name, {}), given.get(name, {})
        differ, open_ = differing(name, one, other, longest)
        model = "" if "model" in differ or "model" not in one else f" ({one['model']})"
        wrong += [
            f"{_WORDS.get(field, field)} of {title}{model} was {one[field]} and is {other[field]}"
            for field in differ
        ]
        unknown += [f"{_WORDS.get(field, field)} of {title}" for field in open_]
    if wrong:
        raise UsageError(
            f"{source} was trained on other embeddings than these: {'; '.join(wrong)}. {advice}"
        )
    return unknown


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
