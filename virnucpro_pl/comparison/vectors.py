"""Two files of vectors, joined by id: cosines, differences, distributions, by length class."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import MaxMetric, MeanMetric, MinMetric

from virnucpro_pl.comparison.joined import Joined, Vectors
from virnucpro_pl.comparison.neighbours import Neighbours, compare_neighbours
from virnucpro_pl.comparison.rows import Rows, describe_rows
from virnucpro_pl.errors import UsageError
from virnucpro_pl.sequences.id_table import match_ids

__all__ = ["Figures", "Spread", "VectorDifference", "Worst", "compare_vectors"]

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
    """Numbers more than FENCE standard deviations of A from the mean of A."""


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
        self.sum = MeanMetric(nan_strategy="error").set_dtype(torch.float64)
        self.squares = MeanMetric(nan_strategy="error").set_dtype(torch.float64)

    def update(self, vectors: Tensor) -> None:
        self.sum.update(vectors)
        self.squares.update(vectors.square())

    def compute(self) -> tuple[float, float]:
        mean = float(self.sum.compute())
        return mean, max(0.0, float(self.squares.compute()) - mean**2) ** 0.5


def _figures(
    pairs: Joined, members: dict[str, NDArray[np.bool_]]
) -> tuple[dict[str, Figures], NDArray[np.float64]]:
    """Give the figures of each class, and plain and centred cosines (2, S)."""
    moments = {name: (_Moments(), _Moments()) for name in members}
    centre = torch.zeros(pairs.files[0].width, dtype=torch.float64)
    for some, a, b in pairs.blocks():
        centre += a.sum(dim=0) / len(pairs.first)
        for name, of in members.items():
            if (inside := of[some]).any():
                for own, vectors in zip(moments[name], (a, b), strict=True):
                    own.update(vectors[torch.from_numpy(inside)])
    known = {name: tuple(own.compute() for own in both) for name, both in moments.items()}
    cosines = np.empty((2, len(pairs.first)))
    streams = {name: _Stream(*known[name][0]) for name in members}
    for some, a, b in pairs.blocks():
        cosines[0, some] = cosine(a, b, torch.zeros_like(centre)).numpy()
        cosines[1, some] = cosine(a, b, centre).numpy()
        for name, of in members.items():
            if (inside := of[some]).any():
                keep = torch.from_numpy(inside)
                streams[name].update(a[keep], b[keep])
    return {
        name: streams[name].figures(cosines[:, of], *known[name]) for name, of in members.items()
    }, cosines


class _Stream:
    """What the second pass adds up of one class."""

    def __init__(self, mean: float, standard_deviation: float) -> None:
        self.mean, self.reach = mean, FENCE * standard_deviation
        self.difference = MaxMetric().set_dtype(torch.float64)
        self.ratio = MeanMetric(nan_strategy="ignore").set_dtype(torch.float64)
        self.least, self.most = (m().set_dtype(torch.float64) for m in (MinMetric, MaxMetric))
        self.outliers = [0, 0]

    def update(self, a: Tensor, b: Tensor) -> None:
        self.difference.update((a - b).abs())
        norms = a.norm(dim=1)
        ratios = (b.norm(dim=1) / norms)[norms > 0]
        if len(ratios):
            for metric in (self.ratio, self.least, self.most):
                metric.update(ratios)
        for i, vectors in enumerate((a, b)):
            self.outliers[i] += int((vectors - self.mean).abs().gt(self.reach).sum())

    def figures(
        self, cosines: NDArray[np.float64], a: tuple[float, float], b: tuple[float, float]
    ) -> Figures:
        return Figures(
            records=cosines.shape[1],
            cosine=_spread(cosines[0]),
            centred_cosine=_spread(cosines[1]),
            largest_difference=float(self.difference.compute()),
            norm_ratio=float(self.ratio.compute()),
            norm_ratio_range=(float(self.least.compute()), float(self.most.compute())),
            mean=(a[0], b[0]),
            standard_deviation=(a[1], b[1]),
            outliers=(self.outliers[0], self.outliers[1]),
        )


def cosine(a: Tensor, b: Tensor, centre: Tensor) -> Tensor:
    """Cosines (n,) of vectors (n, D) after `centre` (D,) was subtracted from both.

    In float64: torchmetrics' CosineSimilarity computes in float32, too coarse by a factor of ten
    for what FP16 changes, and keeps all vectors. Where nothing is left of a vector, as of the only
    one of a file, the cosine is 1 if both are the same number for number, and undefined, NaN,
    if they are not.
    """
    x, y = a - centre, b - centre
    norms = x.norm(dim=1) * y.norm(dim=1)
    tiny = (x.norm(dim=1) <= _ROUNDING * a.norm(dim=1)) | (
        y.norm(dim=1) <= _ROUNDING * b.norm(dim=1)
    )
    same = torch.where((a == b).all(dim=1), 1.0, torch.nan).double()
    return torch.where(tiny, same, ((x * y).sum(dim=1) / norms).clamp(-1, 1))


def _spread(cosines: NDArray[np.float64]) -> Spread:
    low, middle = np.quantile(cosines, (0.01, 0.5))
    return Spread(float(cosines.min()), float(low), float(middle))
