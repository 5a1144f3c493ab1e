"""How right calls are, of the records that have both a row and a label.

A record without a score was not called virus, which costs a user the virus all the same. So two
sets are measured: the records that have a score, and all of them, where those without one count as
called others.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro_pl.evaluate.contig_table import NOT_SCORED, PREDICTIONS, ContigTable
from virnucpro_pl.measures import (
    Confusion,
    Ranking,
    Reliability,
    confusion_at,
    ranking,
    reliability,
)
from virnucpro_pl.output.contig_rule import CALLS, TIERS

LENGTHS = (500, 1_000, 3_000, 10_000)
"""Bases from which each class but the first begins. Tools that find viruses are compared at 500,
1,000 and 3,000 bases since VirFinder (Ren et al. 2017); from 10,000 on genomes are often whole."""
CLASSES = ("<500", "500-999", "1000-2999", "3000-9999", ">=10000")
LEVELS = (0.01, 0.05, 0.1)
"""False discovery rates at which what is called is counted."""
_CALLED = np.array([0.5])
"""Between the 0 of others and the 1 of virus."""


class Part(NamedTuple):
    """Measures of some records."""

    table: NDArray[np.int64]
    """(3, 2) records by PREDICTIONS, and by others and virus in truth."""
    at_thresholds: Confusion
    """(99,) of those with a score, by their virus_score."""
    predicted: Confusion
    """(1,) of those with a score, by their prediction."""
    ranking: Ranking
    """Of those with a score, by their virus_score."""

    @property
    def unscored(self) -> tuple[int, int]:
        """Viruses and others without a score."""
        others, virus = self.table[NOT_SCORED].tolist()
        return virus, others

    @property
    def of_all_at_thresholds(self) -> Confusion:
        """(99,) of all records; those without a score are not called virus."""
        return self.at_thresholds.with_uncalled(*self.unscored)

    @property
    def of_all_predicted(self) -> Confusion:
        """(1,) of all records; those without a score are not predicted to be viruses."""
        return self.predicted.with_uncalled(*self.unscored)

    def summary(self) -> dict[str, float]:
        """Give its figures by name: counts are whole numbers, what is not defined is NaN."""
        unscored_virus, unscored_others = self.unscored
        others, virus = self.table.sum(axis=0).tolist()
        scored, of_all = _each(self.predicted), _each(self.of_all_predicted)
        return {
            "records": others + virus,
            "virus": virus,
            "not_scored": unscored_virus + unscored_others,
            "virus_not_scored": unscored_virus,
            **scored,
            **{f"{name}_of_all": of_all[name] for name in of_all if name != "precision"},
            **self.ranking._asdict(),
        }


class Tier(NamedTuple):
    """The records with one call and tier."""

    call: str
    tier: str
    n: int
    n_virus: int
    """Viruses among them."""
    right: float
    """Share of what the call says; NaN of a call that decides nothing."""


class Discoveries(NamedTuple):
    """What is called at a false discovery rate."""

    level: float
    """Called is what has at most this `fdr`."""
    n: int
    """Records that are called."""
    claimed: float
    """Mean of 1 - virus_probability over them; NaN without one."""
    observed: float
    """Share of others among them; NaN without one."""


class Figures(NamedTuple):
    """All measures."""

    whole: Part
    by_length: dict[str, Part]
    """By CLASSES."""
    tiers: list[Tier]
    """In the order of CALLS and TIERS, those that occur; none without the columns."""
    calibration: Reliability | None
    """Of the records with a virus_probability; None without one."""
    discoveries: list[Discoveries]
    """At LEVELS; none without a record with a `fdr`."""


def measure(contigs: ContigTable, rows: NDArray[np.int64], labels: NDArray[np.uint8]) -> Figures:
    """Measure the records that have a label.

    Args:
        contigs: The table, read.
        rows: (S,) places of the records in it.
        labels: (S,) their labels, 1 for virus and 0 for others.
    """
    scores, predictions = contigs["virus_score"][rows], contigs["prediction"][rows]
    classes = np.searchsorted(LENGTHS, contigs["length"][rows], side="right")
    by_length = {}
    for place, name in enumerate(CLASSES):
        chosen = classes == place
        by_length[name] = _part(labels[chosen], scores[chosen], predictions[chosen])
    whole = _part(labels, scores, predictions)
    tiers = []
    if "call" in contigs and "tier" in contigs:
        tiers = _tiers(contigs["call"][rows], contigs["tier"][rows], labels)
    calibration, discoveries = None, []
    if "virus_probability" in contigs:
        probabilities = contigs["virus_probability"][rows]
        known = ~np.isnan(probabilities)
        if known.any():
            calibration = reliability(labels[known], probabilities[known])
        if known.any() and "fdr" in contigs:
            rates = contigs["fdr"][rows]
            discoveries = [_discoveries(level, rates, probabilities, labels) for level in LEVELS]
    return Figures(whole, by_length, tiers, calibration, discoveries)


def _each(predicted: Confusion) -> dict[str, float]:
    names = ("precision", "recall", "false_positive_rate", "f1", "accuracy", "matthews_correlation")
    return {name: float(getattr(predicted, name)[0]) for name in names}


def _part(labels: NDArray[Any], scores: NDArray[Any], predictions: NDArray[Any]) -> Part:
    pairs = predictions.astype(np.int64) * 2 + labels
    table = np.bincount(pairs, minlength=2 * len(PREDICTIONS)).reshape(len(PREDICTIONS), 2)
    scored = predictions != NOT_SCORED
    known, found = labels[scored], scores[scored]
    called = predictions[scored].astype(np.float32)
    return Part(
        table.astype(np.int64),
        confusion_at(known, found),
        confusion_at(known, called, _CALLED),
        ranking(known, found),
    )


def _tiers(calls: NDArray[Any], tiers: NDArray[Any], labels: NDArray[Any]) -> list[Tier]:
    shape = (len(CALLS), len(TIERS), 2)
    places = np.ravel_multi_index((calls, tiers, labels), shape)
    counts = np.bincount(places, minlength=int(np.prod(shape))).reshape(shape)
    rows = []
    for call, tier in np.argwhere(counts.sum(axis=2)).tolist():
        others, virus = counts[call, tier].tolist()
        right = {"viral": virus, "others": others}.get(CALLS[call], float("nan"))
        rows.append(Tier(CALLS[call], TIERS[tier], others + virus, virus, right / (others + virus)))
    return rows


def _discoveries(
    level: float, rates: NDArray[Any], probabilities: NDArray[Any], labels: NDArray[Any]
) -> Discoveries:
    called = rates <= level
    n = int(called.sum())
    if not n:
        return Discoveries(level, 0, float("nan"), float("nan"))
    claimed, observed = np.mean(1 - probabilities[called]), np.mean(labels[called] == 0)
    return Discoveries(level, n, float(claimed), float(observed))
