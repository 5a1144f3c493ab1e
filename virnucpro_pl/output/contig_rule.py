"""The rule by which contigs are called in production: a call, and a tier that says how sure it is.

The rule is that of the task `classify_virnucpro_contigs` in broadinstitute/viral-pipelines
(`pipes/WDL/tasks/tasks_metagenomics.wdl`, branch ca-kb_python), with the options of its defaults.

Of each scored chunk, delta is P(virus) - P(others), each the largest over its frames, and its
weight the square root of |delta|. The weighted mean of delta decides on the call; how many chunks
are confident, and how many there are at all, decide on the tier.

The task reads scores from a table, and so they are taken here as the tables state them, see
`as_written`: what it makes of the exported tables is then what `contigs.tsv` says.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CALLS = ("viral", "others", "ambiguous", "NA")
"""Of a record; the last without a scored chunk."""
TIERS = ("high", "moderate", "low", "review", "NA")
_VIRAL, _OTHERS, _AMBIGUOUS, _NO_CALL = range(len(CALLS))
_HIGH, _MODERATE, _LOW, _REVIEW, _NO_TIER = range(len(TIERS))

_LEAST_DELTA = 0.3
"""A record is called viral above it, others below its negative."""
_HIGH_DELTA = 0.6
"""The tier is high beyond it."""
_CONFIDENT, _NEGLIGIBLE = 0.8, 0.3
"""A chunk is confident with one score above the former and the other below the latter."""
_BOTH = 0.7
"""It is ambiguous with both above."""
_LEAST_PROPORTION = 0.1
"""Of confident chunks among those that are not ambiguous, for a tier above low."""
_FEW_CHUNKS = 5
"""With fewer scored chunks the tier is lowered."""
_TEXT = "S16"
"""Holds any float32 in decimals."""
_BLOCK = 1 << 20
"""Scores that are in memory as texts at a time."""


class RuleCalls(NamedTuple):
    """What the rule says of each record."""

    weighted_delta: NDArray[np.float64]
    """(R,) from -1 to 1, not rounded; NaN without a scored chunk."""
    call: NDArray[np.int8]
    """(R,) index into CALLS."""
    tier: NDArray[np.int8]
    """(R,) index into TIERS."""
    n_confident_viral: NDArray[np.int64]
    """(R,) chunks with P(virus) above 0.8 and P(others) below 0.3."""
    n_confident_others: NDArray[np.int64]
    """(R,) chunks with P(others) above 0.8 and P(virus) below 0.3."""
    n_ambiguous: NDArray[np.int64]
    """(R,) chunks with both above 0.7."""
    viral_proportion: NDArray[np.float64]
    """(R,) confidently viral ones among the scored chunks that are not ambiguous; 0 of none."""
    others_proportion: NDArray[np.float64]
    """(R,) the same of others."""


def call_by_rule(
    record: NDArray[np.int64],
    others: NDArray[np.float64],
    virus: NDArray[np.float64],
    n_records: int,
) -> RuleCalls:
    """Call records by their scored chunks.

    Args:
        record: (S,) record of each scored chunk.
        others: (S,) its P(others), the largest over its frames, as written.
        virus: (S,) its P(virus), likewise.
        n_records: How many records there are, those without a scored chunk included.
    """

    def count(chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.bincount(record[chosen], minlength=n_records)

    n_scored = np.bincount(record, minlength=n_records)
    weighted_delta = _weighted_means(record, virus - others, n_scored)
    n_viral = count((virus > _CONFIDENT) & (others < _NEGLIGIBLE))
    n_others = count((others > _CONFIDENT) & (virus < _NEGLIGIBLE))
    n_ambiguous = count((virus > _BOTH) & (others > _BOTH))
    left = np.maximum(n_scored - n_ambiguous, 1)  # of none there is no confident one either
    proportions = n_viral / left, n_others / left
    call = np.select(
        [n_scored == 0, weighted_delta > _LEAST_DELTA, weighted_delta < -_LEAST_DELTA],
        [np.int8(_NO_CALL), np.int8(_VIRAL), np.int8(_OTHERS)],
        np.int8(_AMBIGUOUS),
    )
    proportion = np.where(call == _VIRAL, *proportions)
    tier = _tiers(call, np.abs(weighted_delta), proportion, n_scored)
    return RuleCalls(weighted_delta, call, tier, n_viral, n_others, n_ambiguous, *proportions)


def as_written(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """Give the numbers that the tables state for scores (S,).

    They are the shortest decimals that stand for the float32: 0.65, and not 0.6499999762. A chunk
    with scores of 0.65 and 0.35 is thus on the same side of 0.3 as for a reader of the table.
    """
    blocks = (scores[i : i + _BLOCK] for i in range(0, len(scores), _BLOCK))
    written = [block.astype(_TEXT).astype(np.float64) for block in blocks]
    return np.concatenate([np.empty(0), *written])


def rounded(numbers: NDArray[np.float64]) -> list[str]:
    """Write numbers as tables of this rule do: with up to three digits, and `NA` for NaN."""
    return ["NA" if number != number else repr(number) for number in np.round(numbers, 3).tolist()]


def _weighted_means(
    record: NDArray[np.int64], delta: NDArray[np.float64], n_scored: NDArray[np.int64]
) -> NDArray[np.float64]:
    weight = np.sqrt(np.abs(delta))
    weights = np.bincount(record, weights=weight, minlength=len(n_scored))
    total = np.bincount(record, weights=delta * weight, minlength=len(n_scored))
    # Where all weights are 0 so are all deltas, and their plain mean.
    mean = np.where(n_scored > 0, 0.0, np.nan)
    return np.divide(total, weights, out=mean, where=weights > 0)


def _tiers(
    call: NDArray[np.int8],
    size: NDArray[np.float64],
    proportion: NDArray[np.float64],
    n_scored: NDArray[np.int64],
) -> NDArray[np.int8]:
    """Say how sure each call is; (R,) index into TIERS.

    Args:
        call: (R,) index into CALLS.
        size: (R,) |weighted_delta|.
        proportion: (R,) of confident chunks of the side that is called.
        n_scored: (R,) scored chunks.
    """
    few = n_scored < _FEW_CHUNKS
    confident = proportion >= _LEAST_PROPORTION  # so that there is at least one
    return np.select(
        [call == _NO_CALL, call == _AMBIGUOUS, ~confident & few, ~confident | few],
        [np.int8(tier) for tier in (_NO_TIER, _REVIEW, _REVIEW, _LOW)],
        np.where(size > _HIGH_DELTA, np.int8(_HIGH), np.int8(_MODERATE)),
    )
