"""Whether two sets of embeddings were made in one way, and what is known of it."""

from __future__ import annotations

import logging
import sys

from virnucpro_pl.embeddings.embedding_file import EmbeddingFile
from virnucpro_pl.embeddings.feature_origin import (
    FIELDS,
    PRECISION,
    TITLES,
    common_origin,
    differing,
    longest_of,
    origin_of,
)
from virnucpro_pl.embeddings.pair_datamodule import PairStore
from virnucpro_pl.errors import InputError, listed

log = logging.getLogger(__name__)


def check_alike(others: PairStore, viral: PairStore) -> None:
    """Make sure that a classifier can learn nothing from how the two sets were embedded.

    Raises:
        InputError: If they differ in width, or in what their files say of the model.
    """
    for name in TITLES:
        first, second = getattr(others, name), getattr(viral, name)
        if first.width != second.width:
            raise InputError(
                f"{first.path} has vectors of {first.width} numbers, {second.path} of "
                f"{second.width}: both sets must be embedded by one model"
            )
        one, other = origin_of(first), origin_of(second)
        fields, _ = differing(name, one, other, _longest(first, second))
        if fields:
            pairs = ", ".join(f"{key} ({one[key]} and {other[key]})" for key in fields)
            raise InputError(
                f"{first.path} and {second.path} differ in {pairs}: a classifier would learn to "
                "tell the models apart; embed both sets in the same way"
            )
        precisions = [known[PRECISION] for known in (one, other) if PRECISION in known]
        if len(set(precisions)) > 1:
            log.warning(
                "%s and %s were computed in %s: best embed both sets alike",
                first.path,
                second.path,
                " and ".join(precisions),
            )


def _longest(*files: EmbeddingFile) -> int:
    """Letters of the longest sequence of all files; as many as can be where one does not tell."""
    lengths = [longest_of(file) for file in files]
    return max(sys.maxsize if length is None else length for length in lengths)


def common_embedders(others: PairStore, viral: PairStore) -> dict[str, dict[str, str]]:
    """What the files of both sets tell alike of each embedder; the log says what they do not."""
    sets = (others, viral)
    known = {name: common_origin([getattr(pair, name) for pair in sets]) for name in TITLES}
    unknown = [
        f"{field} of {title}"
        for name, title in TITLES.items()
        for field in FIELDS[name]
        if field not in known[name]
    ]
    if unknown:
        log.info(
            "The classifier will not know of its embeddings the %s, which not all files tell",
            listed(unknown),
        )
    return known
