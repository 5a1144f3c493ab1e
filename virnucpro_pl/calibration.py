"""What a classifier's scores mean: from P(virus) of ORFs to the probability that a record is viral.

`fit` learns it on held-out records (`fit.calibrating`), the checkpoint keeps it, and `predict` adds
it to `contigs.tsv`. A classifier of any other origin has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_LARGEST = 100.0
"""Bound of log-odds: beyond it a float32 score is 0."""


class Calibration(NamedTuple):
    """Numbers that turn scores into calibrated log-odds; log-odds are those of virus.

    An ORF: temperature scaling (Guo et al. 2017, ICML), and the classes' weights in the loss taken
    out again. A record: Platt scaling (1999) of the mean over its chunks of the best frame's
    log-odds, whose slope grows with the number of chunks, since each is further evidence.
    """

    temperature: float
    """By which the difference of both logits is divided."""
    loss_log_odds: float
    """Logarithm of the weight of virus over that of others in the training's loss."""
    record_centre: float
    """Mean log-odds at which a record speaks for neither class."""
    record_slope: float
    """By how much the log-odds of a record of one chunk rise with its mean log-odds."""
    record_growth: float
    """Power, from 0 to 1, of the number of chunks that the slope grows with: 0 as if chunks said
    the same, 1 as if they were independent."""
    prevalence: float
    """Share of virus among the records that this was learnt from."""

    def orf_log_odds(self, raw: NDArray[np.float64]) -> NDArray[np.float64]:
        """Calibrated log-odds of ORFs, or means of them, from those that scores state."""
        return raw / self.temperature - self.loss_log_odds

    def record_log_odds(
        self,
        raw_mean: NDArray[np.float64],
        n_chunks: NDArray[np.int64],
        prevalence: float | None = None,
    ) -> NDArray[np.float64]:
        """Calibrated log-odds (R,) of records.

        Args:
            raw_mean: (R,) mean over a record's scored chunks of the log-odds that the best frame's
                scores state; NaN without one.
            n_chunks: (R,) scored chunks.
            prevalence: Share of virus that is expected among the records; by default that of the
                records that the calibration was learnt from.
        """
        growth = np.maximum(n_chunks, 1).astype(np.float64) ** self.record_growth
        mean = self.orf_log_odds(raw_mean)
        evidence = self.record_slope * growth * (mean - self.record_centre)
        return evidence + logit(self.prevalence if prevalence is None else prevalence)

    @classmethod
    def read(cls, content: Any) -> Calibration:
        """Take it from what a checkpoint holds.

        Raises:
            ValueError: If that is no calibration.
        """
        if not isinstance(content, Mapping) or content.keys() != set(cls._fields):
            raise ValueError(f"must be {', '.join(cls._fields)}")
        if not all(isinstance(value, float) for value in content.values()):
            raise ValueError("all must be numbers")
        read = cls(**content)
        above_0 = (read.temperature, read.record_slope, read.prevalence, 1 - read.prevalence)
        in_range = min(above_0) > 0 and 0 <= read.record_growth <= 1
        if not np.isfinite(read).all() or not in_range:
            raise ValueError("some numbers are out of range")
        return read


def score_log_odds(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """Log-odds of virus (M,) that scores (M, 2) state, within +-100; NaN where a score is NaN."""
    with np.errstate(divide="ignore", invalid="ignore"):
        others, virus = np.log(scores.astype(np.float64)).T
        log_odds: NDArray[np.float64] = np.clip(virus - others, -_LARGEST, _LARGEST)
    return log_odds


def logit(probability: float) -> float:
    """Log-odds of a probability."""
    return float(np.log(probability) - np.log1p(-probability))


def sigmoid(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities of log-odds."""
    with np.errstate(invalid="ignore"):  # NaN is one that is not known
        return np.exp(-np.logaddexp(0.0, -log_odds))


def false_discovery_rate(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """For each record the share of others to expect among all that are as likely viral, or more.

    The mean of 1 - P(virus) over the records down to this one, by falling P(virus); equal ones come
    in together. It never falls along this order, since 1 - P(virus) does not.

    Args:
        log_odds: (R,) of the records; NaN for those that do not take part.

    Returns:
        (R,) rates from 0 to 1; NaN where the log-odds are.
    """
    rates = np.full(len(log_odds), np.nan)
    taking_part = np.flatnonzero(~np.isnan(log_odds))
    order = taking_part[np.argsort(-log_odds[taking_part], kind="stable")]
    falling = log_odds[order]
    means = np.cumsum(sigmoid(-falling)) / np.arange(1, len(order) + 1)
    last_equal = np.searchsorted(-falling, -falling, side="right") - 1
    rates[order] = np.maximum.accumulate(means[last_equal])
    return rates
