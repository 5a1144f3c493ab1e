"""How `fit` learns from held-out rows what a classifier's scores mean."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from virnucpro_pl.calibration import Calibration, logit, score_log_odds, sigmoid
from virnucpro_pl.fit.held_out import HeldOut

log = logging.getLogger(__name__)

_SPREAD = 1.0
"""Standard deviation of the prior of a factor's logarithm, around 0: what a handful of records,
which any large factor separates, is held back by."""
_LARGEST_LOG = 10.0
"""Bound of such a logarithm while the best one is looked for."""
_GROWTH, _GROWTH_SPREAD = -2.0, 2.0
"""Mean and standard deviation of the prior of the log-odds of `record_growth`: chunks of a record
say much the same, unless the records tell otherwise."""
_CENTRE_SPREAD = 3.0
"""The same of the centre, around the log-odds of the prevalence."""
_FEW_RECORDS = 100
"""Of a class; with fewer the log says that the probabilities are rough."""


def calibrate(held_out: HeldOut, loss_log_odds: float = 0.0) -> Calibration:
    """Find the temperature of ORFs, then what a record's mean log-odds mean.

    Both are maxima of the likelihood of the labels, with a weak prior that decides where there are
    few records; deterministic.

    Args:
        held_out: Rows that the weights were not fitted to, of both classes.
        loss_log_odds: Logarithm of the weight of virus over that of others in the training's loss.
    """
    raw = torch.from_numpy(score_log_odds(held_out.scores))
    side = _sides(held_out.labels)

    def orf_loss(x: Tensor) -> Tensor:
        log_odds = raw * torch.exp(-x[0].clamp(-_LARGEST_LOG, _LARGEST_LOG)) - loss_log_odds
        return F.softplus(-side * log_odds).sum() + _penalty(x[0], _SPREAD)

    [log_temperature] = _minimise(orf_loss, [0.0])
    labels = held_out.record_labels
    start = Calibration(
        temperature=float(np.exp(log_temperature)),
        loss_log_odds=loss_log_odds,
        record_centre=logit(labels.mean()),
        record_slope=1.0,
        record_growth=float(sigmoid(np.array(_GROWTH))),
        prevalence=float(labels.mean()),
    )
    mean = torch.from_numpy(start.orf_log_odds(held_out.record_means(raw.numpy())))
    n_chunks = torch.from_numpy(held_out.record_chunks.astype(np.float64))
    record_side = _sides(labels)

    def record_loss(x: Tensor) -> Tensor:
        shift, log_slope, growth_log_odds = x
        slope = torch.exp(log_slope.clamp(-_LARGEST_LOG, _LARGEST_LOG))
        growth = torch.sigmoid(growth_log_odds)
        evidence = slope * n_chunks**growth * (mean - start.record_centre - shift)
        prior = _penalty(shift, _CENTRE_SPREAD) + _penalty(log_slope, _SPREAD)
        prior = prior + _penalty(growth_log_odds - _GROWTH, _GROWTH_SPREAD)
        return F.softplus(-record_side * (evidence + logit(start.prevalence))).sum() + prior

    shift, log_slope, growth_log_odds = _minimise(record_loss, [0.0, 0.0, _GROWTH])
    few = min(np.bincount(labels, minlength=2))
    if few < _FEW_RECORDS:
        log.warning(
            "Probabilities are rough: of the smaller class, only %d record(s) are held out to "
            "learn them from (--data.validation_fraction holds more out)",
            few,
        )
    return start._replace(
        record_centre=start.record_centre + shift,
        record_slope=float(np.exp(log_slope)),
        record_growth=float(sigmoid(np.array(growth_log_odds))),
    )


def _sides(labels: NDArray[np.int64]) -> Tensor:
    """-1 for others and 1 for virus."""
    return torch.from_numpy(2.0 * labels - 1)


def _penalty(value: Tensor, spread: float) -> Tensor:
    """Negative logarithm of a normal prior around 0, up to a constant."""
    return value.square() / (2 * spread**2)


def _minimise(loss: Callable[[Tensor], Tensor], start: list[float]) -> list[float]:
    """Find numbers of the least loss; those to start from if nothing better is found."""
    x = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    first = float(loss(x.detach()))
    optimizer = torch.optim.LBFGS(
        [x],
        max_iter=200,
        tolerance_grad=1e-9,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(x)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    if not float(loss(x.detach())) <= first:
        return start
    return [float(number) for number in x.detach()]
