"""Two files of vectors, joined by id: cosines, differences, distributions, by length class."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import MaxMetric, MeanMetric, MinMetric, SumMetric

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
    listed = [np.isin(rows, f.failed) for f, rows in ((a, match.first), (b, match.second))]
    rows = describe_rows((len(a), len(b)), match, (first_ids, second_ids), list(finite), listed)
    pairs = shared.chosen(finite.all(axis=0) & ~listed[0] & ~listed[1])
    lengths, other_lengths = _lengths(pairs)
    members = _classes(lengths, len(pairs.first))
    classes, cosines = _figures(pairs, members) if len(pairs.first) else ({}, np.empty((2, 0)))
    worst = np.argsort(np.nan_to_num(cosines[1], nan=-2.0), kind="stable")[:_WORST]
    return VectorDifference(
        rows,
        a.width,
        classes,
        compare_neighbours(pairs, seed),
        [
            Worst(
                name,
                None if lengths is None else int(lengths[row]),
                float(cosines[0, row]),
                float(cosines[1, row]),
            )
            for name, row in zip(first_ids(pairs.first[worst]), worst, strict=True)
        ],
        other_lengths,
    )


def _finite(pairs: Joined) -> NDArray[np.bool_]:
    """Tell for A and B which vectors are finite; (2, S)."""
    finite = np.empty((2, len(pairs.first)), np.bool_)
    for some, *vectors in pairs.blocks():
        for own, of in zip(finite, vectors, strict=True):
            own[some] = of.isfinite().all(dim=1).numpy()
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


def _classes(lengths: NDArray[np.int32] | None, count: int) -> dict[str, NDArray[np.bool_]]:
    """Members of each class that has any; (S,) each."""
    if lengths is None:
        return {"all": np.ones(count, np.bool_)}
    members = {
        name: (lengths >= low) & (lengths < (np.inf if high is None else high))
        for name, (low, high) in CLASSES.items()
    }
    return {name: of for name, of in members.items() if of.any()}


class _Moments:
    """Mean and standard deviation of all numbers of A or B in one class, streamed in float64."""

    def __init__(self) -> None:
        self.mean = MeanMetric(nan_strategy="error").set_dtype(torch.float64)
        self.square = MeanMetric(nan_strategy="error").set_dtype(torch.float64)

    def update(self, means: Tensor, squares: Tensor) -> None:
        """Add records by the means (n,) of their numbers and of their squares."""
        self.mean.update(means)
        self.square.update(squares)

    def compute(self) -> tuple[float, float]:
        mean = float(self.mean.compute())
        return mean, max(0.0, float(self.square.compute()) - mean**2) ** 0.5


class _Differences:
    """What the second pass adds up of one class."""

    def __init__(self) -> None:
        self.largest, self.most, self.least = (
            metric().set_dtype(torch.float64) for metric in (MaxMetric, MaxMetric, MinMetric)
        )
        self.ratio = MeanMetric(nan_strategy="error").set_dtype(torch.float64)
        self.outliers = [SumMetric().set_dtype(torch.float64) for _ in "AB"]

    def update(self, largest: Tensor, ratios: Tensor, outliers: tuple[Tensor, Tensor]) -> None:
        """Add records: largest difference, norm ratio, outliers in A and in B, (n,) each."""
        self.largest.update(largest)
        known = ratios[ratios.isfinite()]  # a zero vector has no ratio
        if len(known):
            for metric in (self.ratio, self.least, self.most):
                metric.update(known)
        for metric, counts in zip(self.outliers, outliers, strict=True):
            metric.update(counts)


def _figures(
    pairs: Joined, members: dict[str, NDArray[np.bool_]]
) -> tuple[dict[str, Figures], NDArray[np.float64]]:
    """Give the figures of each class, and plain and centred cosines (2, S)."""
    centre, moments = _first_pass(pairs, members)
    mean, deviation = moments["all"][0]
    cosines = np.empty((2, len(pairs.first)))
    differences = {name: _Differences() for name in members}
    for some, a32, b32 in pairs.blocks():
        a, b = a32.double(), b32.double()
        cosines[0, some] = cosine(a, b, torch.zeros_like(centre)).numpy()
        cosines[1, some] = cosine(a, b, centre).numpy()
        largest = (a - b).abs().amax(dim=1)
        ratios = b.norm(dim=1) / a.norm(dim=1)
        beyond = [(x - mean).abs().gt(FENCE * deviation).sum(dim=1) for x in (a, b)]
        for name, inside in _inside(members, some):
            differences[name].update(
                largest[inside], ratios[inside], (beyond[0][inside], beyond[1][inside])
            )
    return {
        name: _summary(differences[name], cosines[:, of], *moments[name])
        for name, of in members.items()
    }, cosines


def _first_pass(
    pairs: Joined, members: dict[str, NDArray[np.bool_]]
) -> tuple[Tensor, dict[str, list[tuple[float, float]]]]:
    """Give the mean vector (D,) of A; by class, mean and deviation of the numbers of A and B."""
    moments = {name: (_Moments(), _Moments()) for name in members}
    centre = torch.zeros(pairs.files[0].width, dtype=torch.float64)
    for some, *both in pairs.blocks():
        wide = [vectors.double() for vectors in both]
        centre += wide[0].sum(dim=0) / len(pairs.first)
        means = [(x.mean(dim=1), x.square().mean(dim=1)) for x in wide]
        for name, inside in _inside(members, some):
            for own, (mean, square) in zip(moments[name], means, strict=True):
                own.update(mean[inside], square[inside])
    return centre, {name: [own.compute() for own in both] for name, both in moments.items()}


def _inside(members: dict[str, NDArray[np.bool_]], some: slice) -> Iterator[tuple[str, Tensor]]:
    """Yield the classes that have members in a block, and a mask (n,) of these."""
    for name, of in members.items():
        if of[some].any():
            yield name, torch.from_numpy(of[some])


def _summary(
    differences: _Differences,
    cosines: NDArray[np.float64],
    a: tuple[float, float],
    b: tuple[float, float],
) -> Figures:
    of = differences
    known = of.ratio.update_called
    return Figures(
        records=cosines.shape[1],
        cosine=_spread(cosines[0]),
        centred_cosine=_spread(cosines[1]),
        largest_difference=float(of.largest.compute()),
        norm_ratio=float(of.ratio.compute()) if known else math.nan,
        norm_ratio_range=(
            (float(of.least.compute()), float(of.most.compute())) if known else (math.nan, math.nan)
        ),
        mean=(a[0], b[0]),
        standard_deviation=(a[1], b[1]),
        outliers=(int(of.outliers[0].compute()), int(of.outliers[1].compute())),
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
