"""Two files of vectors, joined by id: cosines, differences, distributions, by length class."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from virnucpro_pl.compare.joined import Joined, Vectors
from virnucpro_pl.compare.neighbours import Neighbours, compare_neighbours
from virnucpro_pl.compare.rows import Rows, describe_rows
from virnucpro_pl.embeddings.id_table import match_ids
from virnucpro_pl.errors import UsageError

CLASSES = {"all": (0, None), "short": (0, 50), "medium": (50, 201), "long": (201, None)}
"""Length classes: letters of a record from, and up to but not including."""
FENCE = 3.0
"""Standard deviations from the mean beyond which a number is an outlier."""
_ROUNDING = 1e-12
"""Share of its norm that is left of a float64 vector when the same vector is subtracted."""
_WORST = 5
_MEASURES = np.dtype(
    [
        ("cosine", np.float64),
        ("centred_cosine", np.float64),
        ("difference", np.float64),  # the largest
        ("norm_ratio", np.float64),
        ("mean", np.float64, 2),  # of A's numbers and of B's, as all that follows
        ("square", np.float64, 2),  # the mean of them
        ("outliers", np.int32, 2),
    ]
)
"""What is kept of each pair of records."""


class Spread(NamedTuple):
    """Cosines of many records; NaN if any is undefined."""

    min: float
    percentile_1: float
    median: float


class Figures(NamedTuple):
    """What is said of a class of records; pairs are of A and of B."""

    records: int
    cosine: Spread
    """Of a record's vectors in A and in B."""
    centred_cosine: Spread
    """The same after the mean vector of A was subtracted from both."""
    largest_difference: float
    """Of two numbers at the same place."""
    norm_ratio: float
    """Mean over the records of B's norm over A's."""
    norm_ratio_range: tuple[float, float]
    mean: tuple[float, float]
    """Of all numbers."""
    standard_deviation: tuple[float, float]
    """Of all numbers."""
    outliers: tuple[int, int]
    """Numbers more than FENCE standard deviations from the mean, both of A over all classes."""


class Worst(NamedTuple):
    """A record that is far apart."""

    id: str
    length: int | None
    cosine: float
    centred_cosine: float


class VectorDifference(NamedTuple):
    """All that is said of two files of vectors."""

    rows: Rows
    width: int
    classes: dict[str, Figures]
    """By name; `all` alone where no lengths are known, and none without a record to compare."""
    neighbours: Neighbours
    worst: list[Worst]
    """The lowest centred cosines, lowest first."""
    other_lengths: int
    """Records of which the files tell different lengths: they are not of one sequence."""


def compare_vectors(a: Vectors, b: Vectors, scratch: Path, seed: int = 0) -> VectorDifference:
    """Join two files by id and compare them, a block of rows at a time.

    Rows without a finite vector in either are counted, not compared.

    Args:
        a: The file that the other is measured by.
        b: The other.
        scratch: An existing folder for the ids.
        seed: Of the sample among which neighbours are sought.

    Raises:
        UsageError: If vectors differ in width, or an id stands twice in a file.
    """
    if a.width != b.width and len(a) and len(b):
        raise UsageError(
            f"{a.path} holds vectors of {a.width} numbers, {b.path} of {b.width}: they are not of "
            "one model"
        )
    match, first_ids, second_ids = match_ids((a, b), scratch)
    shared = Joined((a, b), match.first, match.second)
    finite = _finite(shared)
    failed = np.stack([np.isin(match.first, a.failed), np.isin(match.second, b.failed)])
    ids = first_ids, second_ids
    rows, compared = describe_rows((len(a), len(b)), match, ids, finite, failed)
    pairs = shared.chosen(compared)
    lengths, other_lengths = _lengths(pairs)
    measures = _measure(pairs)
    worst = np.argsort(np.nan_to_num(measures["centred_cosine"], nan=-2.0), kind="stable")[:_WORST]
    return VectorDifference(
        rows,
        a.width,
        _classes(measures, lengths),
        compare_neighbours(pairs, seed),
        [
            Worst(
                name,
                None if lengths is None else int(lengths[row]),
                float(measures["cosine"][row]),
                float(measures["centred_cosine"][row]),
            )
            for name, row in zip(first_ids(pairs.first[worst]), worst, strict=True)
        ],
        other_lengths,
    )


def _finite(pairs: Joined) -> NDArray[np.bool_]:
    """Tell for A and B which vectors are finite; (2, S)."""
    finite = np.empty((2, len(pairs.first)), np.bool_)
    for block, *vectors in pairs.blocks():
        finite[:, block] = [side.isfinite().all(dim=1).numpy() for side in vectors]
    return finite


def _lengths(pairs: Joined) -> tuple[NDArray[np.int32] | None, int]:
    """Give the lengths of the pairs, if a file tells them, and how many differ if both do."""
    known = [
        lengths[rows]
        for file, rows in zip(pairs.files, (pairs.first, pairs.second), strict=True)
        if (lengths := file.lengths) is not None
    ]
    different = int(np.count_nonzero(known[0] != known[1])) if len(known) > 1 else 0
    return (known[0] if known else None), different


def _classes(measures: NDArray[np.void], lengths: NDArray[np.int32] | None) -> dict[str, Figures]:
    """What is said of each class that has any records."""
    if not len(measures):
        return {}
    figures = {"all": _figures(measures)}  # no copy is made of what may be large
    if lengths is not None:
        for name, (low, high) in CLASSES.items():
            members = (lengths >= low) & (lengths < (np.inf if high is None else high))
            if name != "all" and members.any():
                figures[name] = _figures(measures[members])
    return figures


def _measure(pairs: Joined) -> NDArray[np.void]:
    """Measure each pair by itself, in two passes over both files: (S,) of _MEASURES."""
    measures = np.empty(len(pairs.first), _MEASURES)
    if not len(measures):
        return measures
    centre = torch.zeros(pairs.files[0].width, dtype=torch.float64)
    for block, *vectors in pairs.blocks():
        for side, x in enumerate(vector.double() for vector in vectors):
            measures["mean"][block, side] = x.mean(dim=1)
            measures["square"][block, side] = x.square().mean(dim=1)
            if side == 0:
                centre += x.sum(dim=0) / len(measures)
    mean, deviation = (float(both[0]) for both in _moments(measures))
    for block, *vectors in pairs.blocks():
        a, b = (vector.double() for vector in vectors)
        measures["cosine"][block] = cosine(a, b, torch.zeros_like(centre))
        measures["centred_cosine"][block] = cosine(a, b, centre)
        measures["difference"][block] = (a - b).abs().amax(dim=1)
        measures["norm_ratio"][block] = b.norm(dim=1) / a.norm(dim=1)
        for side, x in enumerate((a, b)):
            outlying = (x - mean).abs() > FENCE * deviation
            measures["outliers"][block, side] = outlying.sum(dim=1)
    return measures


def _moments(measures: NDArray[np.void]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of all numbers, (2,) each: of A and of B."""
    mean = measures["mean"].mean(axis=0)
    return mean, np.sqrt(np.maximum(0, measures["square"].mean(axis=0) - mean**2))


def _figures(measures: NDArray[np.void]) -> Figures:
    """What is said of the records of a class."""
    mean, deviation = (tuple(both.tolist()) for both in _moments(measures))
    ratios = measures["norm_ratio"][np.isfinite(measures["norm_ratio"])]
    if not len(ratios):  # a zero vector has none
        ratios = np.array([math.nan])
    return Figures(
        records=len(measures),
        cosine=_spread(measures["cosine"]),
        centred_cosine=_spread(measures["centred_cosine"]),
        largest_difference=float(measures["difference"].max()),
        norm_ratio=float(ratios.mean()),
        norm_ratio_range=(float(ratios.min()), float(ratios.max())),
        mean=mean,
        standard_deviation=deviation,
        outliers=tuple(measures["outliers"].sum(axis=0).tolist()),
    )


def cosine(a: Tensor, b: Tensor, centre: Tensor) -> Tensor:
    """Cosines (n,) of vectors (n, D) after `centre` (D,) was subtracted from both.

    In float64: torchmetrics' CosineSimilarity computes in float32, whose rounding is as large as
    what FP16 changes in a plain cosine, and it keeps all vectors. Where nothing is left of a
    vector, as of the only one of a file, the cosine is 1 if both are the same number for number,
    and undefined, NaN, if they are not.
    """
    x, y = a - centre, b - centre
    norms, left = (x.norm(dim=1), y.norm(dim=1)), (a.norm(dim=1), b.norm(dim=1))
    tiny = (norms[0] <= _ROUNDING * left[0]) | (norms[1] <= _ROUNDING * left[1])
    cosines: Tensor = ((x * y).sum(dim=1) / (norms[0] * norms[1])).clamp(-1, 1)
    cosines[tiny] = torch.nan
    cosines[(a == b).all(dim=1)] = 1.0  # exactly, so that a file meets any gate against itself
    return cosines


def _spread(cosines: NDArray[np.float64]) -> Spread:
    low, middle = np.quantile(cosines, (0.01, 0.5))
    return Spread(float(cosines.min()), float(low), float(middle))
