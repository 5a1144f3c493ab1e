"""How likely each record is viral, and how many of those called virus to expect to be wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro_pl.calibration import Calibration, false_discovery_rate, sigmoid
from virnucpro_pl.output.chunk_table import ChunkCalls

PROBABILITY_HEADER = "virus_probability\tfdr"


class RecordProbabilities(NamedTuple):
    """What a calibrated classifier says of each record."""

    virus_probability: NDArray[np.float64]
    """(R,) probability that the record is viral; NaN without a score, or without a calibration."""
    fdr: NDArray[np.float64]
    """(R,) false discovery rate, the share of others to expect among all records that are as likely
    viral as this one, or more; NaN likewise."""

    def cells(self, rows: NDArray[np.int64]) -> Iterator[str]:
        """Both columns of some records, with `NA` for NaN."""
        columns = (self.virus_probability[rows].tolist(), self.fdr[rows].tolist())
        for probability, rate in zip(*columns, strict=True):
            yield f"{_cell(probability)}\t{_cell(rate)}"


def _cell(number: float) -> str:
    return "NA" if math.isnan(number) else f"{number:.6g}"


def record_probabilities(
    chunks: ChunkCalls, calibration: Calibration | None, prevalence: float | None = None
) -> RecordProbabilities:
    """Go from chunks to probabilities of their records.

    Args:
        chunks: All of all records.
        calibration: What the classifier's scores mean, if it knows.
        prevalence: Share of virus that is expected among the records; by default that among the
            records that the calibration was learnt from.
    """
    count = len(chunks.n_chunks)
    if calibration is None:
        unknown = np.full(count, np.nan)
        return RecordProbabilities(unknown, unknown)
    owner, scored = chunks.record, chunks.is_scored
    n_scored = np.bincount(owner[scored], minlength=count)
    total = np.bincount(owner[scored], weights=chunks.log_odds[scored], minlength=count)
    mean = np.full(count, np.nan)
    np.divide(total, n_scored, out=mean, where=n_scored > 0)
    log_odds = calibration.record_log_odds(mean, n_scored, prevalence)
    rates = false_discovery_rate(log_odds)
    return RecordProbabilities(_as_written(sigmoid(log_odds)), _as_written(rates))


def _as_written(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Numbers of six digits, as the table states them: what is called by one agrees with it."""
    with np.errstate(divide="ignore", invalid="ignore"):
        digits = 5 - np.floor(np.log10(numbers))
    scale = 10.0 ** np.clip(np.nan_to_num(digits), 0, 300)
    return np.asarray(np.rint(numbers * scale) / scale)
