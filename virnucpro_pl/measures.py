"""How good scores are against known labels: calls at thresholds, ranking, calibration.

Shared by `fit`, which measures the rows that it holds out, and `evaluate`, which measures results.
A measure that is not defined, such as the precision where nothing is called, is NaN, and `NA` in a
table: 0 would be a claim. Letters: N labelled items, K thresholds, B bins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

THRESHOLDS: Floats = np.arange(1, 100) / 100
"""(99,) 0.01 to 0.99."""
_BLOCK = 1 << 20
"""Items that are looked at at a time."""


class Confusion(NamedTuple):
    """How many items are called rightly and wrongly at each threshold."""

    thresholds: Floats
    """(K,) least score of what is called virus."""
    true_positives: Counts
    """(K,) viruses called virus."""
    false_positives: Counts
    """(K,) others called virus."""
    true_negatives: Counts
    """(K,) others not called virus."""
    false_negatives: Counts
    """(K,) viruses not called virus."""

    @property
    def n_virus(self) -> Counts:
        """(K,) viruses."""
        return self.true_positives + self.false_negatives

    @property
    def n_others(self) -> Counts:
        """(K,) others."""
        return self.false_positives + self.true_negatives

    @property
    def n(self) -> Counts:
        """(K,) items."""
        return self.n_virus + self.n_others

    @property
    def precision(self) -> Floats:
        """(K,) share of viruses among what is called virus; NaN where nothing is."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> Floats:
        """(K,) share of the viruses that is called virus; NaN without one."""
        return _ratio(self.true_positives, self.n_virus)

    @property
    def false_positive_rate(self) -> Floats:
        """(K,) share of the others that is called virus; NaN without one."""
        return _ratio(self.false_positives, self.n_others)

    @property
    def f1(self) -> Floats:
        """(K,) harmonic mean of precision and recall; NaN where no item is or is called virus."""
        twice = 2 * self.true_positives
        return _ratio(twice, twice + self.false_positives + self.false_negatives)

    @property
    def accuracy(self) -> Floats:
        """(K,) share of the items that is called rightly; NaN without one."""
        return _ratio(self.true_positives + self.true_negatives, self.n)

    @property
    def matthews_correlation(self) -> Floats:
        """(K,) Matthews correlation coefficient; NaN where all are, or are called, of one kind."""
        tp, fp, tn, fn = (counts.astype(np.float64) for counts in self[1:])
        size = np.sqrt(tp + fp) * np.sqrt(tp + fn) * np.sqrt(tn + fp) * np.sqrt(tn + fn)
        return _ratio(tp * tn - fp * fn, size)

    def columns(self) -> dict[str, NDArray[Any]]:
        """Counts and measures by name, each (K,), as `thresholds.tsv` has them."""
        names = (*self._fields[1:], "precision", "recall", "false_positive_rate", "f1")
        firsts = {"threshold": self.thresholds, "n": self.n, "n_virus": self.n_virus}
        return firsts | {name: getattr(self, name) for name in names}

    def combined(self, other: Confusion) -> Confusion:
        """Counts of the items of both.

        Raises:
            ValueError: If they are of other thresholds.
        """
        if not np.array_equal(self.thresholds, other.thresholds):
            raise ValueError("counts at other thresholds cannot be added")
        return Confusion(self.thresholds, *map(np.add, self[1:], other[1:]))

    def with_uncalled(self, n_virus: int, n_others: int) -> Confusion:
        """Counts with items that have no score, and so are never called virus."""
        return self._replace(
            true_negatives=self.true_negatives + n_others,
            false_negatives=self.false_negatives + n_virus,
        )


def confusion_at(
    labels: NDArray[Any], scores: NDArray[Any], thresholds: Floats = THRESHOLDS
) -> Confusion:
    """Count right and wrong calls, where what has at least the threshold is called virus.

    Args:
        labels: (N,) 1 for virus, 0 for others.
        scores: (N,) of any type of float, in which they are compared, as `contigs.tsv` has it: a
            float32 that is written as 0.3 has reached the threshold 0.3.
        thresholds: (K,) ascending.

    Raises:
        ValueError: If a score is NaN, or a label neither 0 nor 1.
    """
    levels = _comparable(thresholds, scores)
    reached = np.zeros((2, len(levels) + 1), np.int64)  # others, virus; how many levels each has
    for of_virus, block in _blocks(labels, scores):
        places = np.searchsorted(levels, block, side="right")
        for label, chosen in enumerate((~of_virus, of_virus)):
            reached[label] += np.bincount(places[chosen], minlength=len(levels) + 1)
    below = np.cumsum(reached, axis=1)[:, :-1]  # (2, K)
    (tn, fn), totals = below, reached.sum(axis=1)
    return Confusion(np.asarray(thresholds, np.float64), totals[1] - fn, totals[0] - tn, tn, fn)


class Ranking(NamedTuple):
    """How well a score puts viruses before others, whatever the threshold."""

    auroc: float
    """Area under the ROC curve, ties counted half: the chance that a virus has a higher score than
    one of the others; NaN unless there are both."""
    average_precision: float
    """Mean over the viruses of the precision at their scores; NaN without a virus."""


def ranking(labels: NDArray[Any], scores: NDArray[Any]) -> Ranking:
    """Measure the order of all scores, exactly.

    Args:
        labels: (N,) 1 for virus, 0 for others.
        scores: (N,).

    Raises:
        ValueError: If a score is NaN, or a label neither 0 nor 1.
    """
    of_virus = _checked(labels, scores)
    order = np.argsort(scores)[::-1]
    ordered = scores[order]
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)[: len(ordered)])
    viruses = np.cumsum(of_virus[order])[last]  # with each distinct score or a higher one
    others = last + 1 - viruses
    new_viruses, new_others = np.diff(viruses, prepend=0), np.diff(others, prepend=0)
    n_virus, n_others = int(new_viruses.sum()), int(new_others.sum())
    wins = float(np.sum(new_others * (viruses - new_viruses / 2), dtype=np.float64))
    precisions = float(np.sum(new_viruses * (viruses / (last + 1))))
    return Ranking(
        wins / n_virus / n_others if n_virus and n_others else np.nan,
        precisions / n_virus if n_virus else np.nan,
    )


class Reliability(NamedTuple):
    """What becomes of items whose probability lies in each bin of equal width."""

    lower: Floats
    """(B,) least probability in the bin."""
    upper: Floats
    """(B,) probability below which it ends; 1 itself lies in the last bin."""
    n: Counts
    """(B,) items."""
    n_virus: Counts
    """(B,) viruses among them."""
    total_probability: Floats
    """(B,) sum of their probabilities."""
    total_squared_error: Floats
    """(B,) sum of (probability - label)^2."""

    @property
    def mean_probability(self) -> Floats:
        """(B,) what is claimed; NaN of an empty bin."""
        return _ratio(self.total_probability, self.n)

    @property
    def observed(self) -> Floats:
        """(B,) share of viruses, what is true; NaN of an empty bin."""
        return _ratio(self.n_virus, self.n)

    @property
    def expected_calibration_error(self) -> float:
        """Mean over the items of |claimed - observed| in their bins; NaN without items."""
        return _quotient(np.abs(self.total_probability - self.n_virus).sum(), self.n.sum())

    @property
    def brier_score(self) -> float:
        """Mean of (probability - label)^2 over the items; NaN without one."""
        return _quotient(self.total_squared_error.sum(), self.n.sum())

    def columns(self) -> dict[str, NDArray[Any]]:
        """Sums and means by name, each (B,), as `calibration.tsv` has them."""
        names = ("lower", "upper", "n", "n_virus", "mean_probability", "observed")
        return {name: getattr(self, name) for name in names} | {
            "calibration_error": np.abs(self.mean_probability - self.observed),
            "brier_score": _ratio(self.total_squared_error, self.n),
        }

    def combined(self, other: Reliability) -> Reliability:
        """Sums over the items of both.

        Raises:
            ValueError: If they have other bins.
        """
        if not np.array_equal(self.lower, other.lower):
            raise ValueError("sums over other bins cannot be added")
        return Reliability(self.lower, self.upper, *map(np.add, self[2:], other[2:]))


def reliability(labels: NDArray[Any], probabilities: NDArray[Any], bins: int = 10) -> Reliability:
    """Compare probabilities with what is true, by bins of equal width.

    A bin holds its lower end, but not its upper one, compared as in `confusion_at`.

    Args:
        labels: (N,) 1 for virus, 0 for others.
        probabilities: (N,) of virus.
        bins: B.

    Raises:
        ValueError: If a probability is none, or a label neither 0 nor 1.
    """
    edges = np.arange(bins + 1) / bins
    inner = _comparable(edges[1:-1], probabilities)
    sums = np.zeros((4, bins))
    for of_virus, block in _blocks(labels, probabilities):
        if len(block) and not (block.min() >= 0 and block.max() <= 1):
            raise ValueError("a probability lies from 0 to 1")
        places = np.searchsorted(inner, block, side="right")
        claimed = block.astype(np.float64)
        for total, weights in zip(
            sums, (None, of_virus, claimed, np.square(claimed - of_virus)), strict=True
        ):
            total += np.bincount(places, weights, minlength=bins)
    counts, viruses = sums[:2].astype(np.int64)  # exact up to 2^53
    return Reliability(edges[:-1], edges[1:], counts, viruses, sums[2], sums[3])


def brier_score(labels: NDArray[Any], probabilities: NDArray[Any]) -> float:
    """Mean of (probability - label)^2; NaN without items.

    Args:
        labels: (N,) 1 for virus, 0 for others.
        probabilities: (N,) of virus.

    Raises:
        ValueError: If a probability is none, or a label neither 0 nor 1.
    """
    return reliability(labels, probabilities, bins=1).brier_score


def write_thresholds(path: Path, measured: Mapping[str, Confusion]) -> None:
    """Write `thresholds.tsv`: a line for each threshold of each set of items.

    Args:
        path: The file to write.
        measured: By what is counted, such as `orfs` and `records`: the column `of`.
    """
    _write(path, [(name, confusion.columns()) for name, confusion in measured.items()])


def write_calibration(path: Path, measured: Mapping[str, Reliability]) -> None:
    """Write `calibration.tsv`: a line for each bin of each set of probabilities, then one for all.

    The calibration_error is |mean_probability - observed| in a bin, and the expected calibration
    error in the line of all, which goes from 0 to 1.

    Args:
        path: The file to write.
        measured: By what they are, such as `before` and `after`: the column `of`.
    """
    parts = []
    for name, bins in measured.items():
        sums = [column.sum(keepdims=True) for column in bins[2:]]
        whole = Reliability(np.zeros(1), np.ones(1), *sums).columns()
        whole["calibration_error"] = np.array([bins.expected_calibration_error])
        parts += [(name, bins.columns()), (name, whole)]
    _write(path, parts)


def as_cell(number: Any) -> str:
    """Write a number as the tables have it: up to six digits of a fraction, and `NA` for NaN."""
    if number != number:
        return "NA"
    return f"{number:.6g}" if isinstance(number, float) else str(number)


def _write(path: Path, parts: Sequence[tuple[str, dict[str, NDArray[Any]]]]) -> None:
    """Write a table of parts with the same columns, at least one, each under its name."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write("\t".join(["of", *parts[0][1]]) + "\n")
        for name, columns in parts:
            for row in zip(*(column.tolist() for column in columns.values()), strict=True):
                file.write("\t".join([name, *map(as_cell, row)]) + "\n")


def _blocks(
    labels: NDArray[Any], scores: NDArray[Any]
) -> Iterator[tuple[NDArray[np.bool_], NDArray[Any]]]:
    """Yield which are viruses, and their scores, some at a time."""
    of_virus = _checked(labels, scores)
    for start in range(0, len(scores), _BLOCK):
        yield of_virus[start : start + _BLOCK], scores[start : start + _BLOCK]


def _checked(labels: NDArray[Any], scores: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell which items are viruses; (N,).

    Raises:
        ValueError: If a score is NaN, or a label neither 0 nor 1.
    """
    of_virus: NDArray[np.bool_] = labels == 1
    if labels.shape != scores.shape or not np.all(of_virus | (labels == 0)):
        raise ValueError("each score needs a label of 0 or 1")
    if np.isnan(scores).any():
        raise ValueError("a score is NaN: leave out what has none, and count it")
    return of_virus


def _comparable(levels: Floats, scores: NDArray[Any]) -> NDArray[Any]:
    """Give levels in the precision of scores."""
    return np.asarray(levels).astype(np.result_type(scores.dtype, np.float16))


def _ratio(numbers: NDArray[Any], of: NDArray[Any]) -> Floats:
    """Divide, and give NaN where there is nothing to divide by."""
    ratios = np.full(of.shape, np.nan)
    np.divide(numbers, of, out=ratios, where=of != 0)
    return ratios


def _quotient(number: Any, of: Any) -> float:
    return float(number) / float(of) if of else float("nan")
