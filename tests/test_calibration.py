"""What scores mean: probabilities of records, and how many of the calls are wrong."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from virnucpro_pl.calibration import (
    Calibration,
    false_discovery_rate,
    logit,
    score_log_odds,
    sigmoid,
)

PLAIN = Calibration(
    temperature=1.0,
    loss_log_odds=0.0,
    record_centre=logit(0.5),
    record_slope=1.0,
    record_growth=0.0,
    prevalence=0.5,
)


def scores_of(log_odds):
    """Both scores, as a softmax in float32 gives them."""
    log_odds = np.asarray(log_odds, np.float64)
    return np.stack([sigmoid(-log_odds), sigmoid(log_odds)], axis=1).astype(np.float32)


def test_log_odds_are_those_of_the_logits_also_where_p_virus_is_1():
    log_odds = np.array([-60.0, -3.0, 0.0, 3.0, 20.0, 60.0])
    scores = scores_of(log_odds)
    assert scores[-1, 1] == scores[-2, 1] == 1
    np.testing.assert_allclose(score_log_odds(scores), log_odds, rtol=1e-6, atol=1e-6)


def test_log_odds_of_certain_scores_are_bounded_and_of_lost_ones_nan():
    lost = [np.nan, np.nan]
    given_scores = np.array([[0, 1], [1, 0], lost], np.float32)
    np.testing.assert_array_equal(score_log_odds(given_scores), [100, -100, np.nan])


def test_record_log_odds_by_hand():
    known = Calibration(2.0, math.log(4), -1.0, 3.0, 0.5, 0.2)
    raw, chunks = np.array([4.0, 4.0, np.nan]), np.array([1, 4, 0])
    of_orf = 4.0 / 2 - math.log(4)
    expected = [3 * (of_orf + 1) + logit(0.2), 3 * 2 * (of_orf + 1) + logit(0.2), np.nan]
    np.testing.assert_allclose(known.record_log_odds(raw, chunks), expected)
    # Another prevalence moves the odds of all by one factor.
    moved = known.record_log_odds(raw, chunks, 0.01) - known.record_log_odds(raw, chunks)
    np.testing.assert_allclose(moved[:2], logit(0.01) - logit(0.2))


def test_fdr_by_hand():
    probabilities = np.array([0.9, np.nan, 0.5, 0.99, 0.5, 0.1])
    log_odds = np.log(probabilities / (1 - probabilities))
    expected = [0.11 / 2, np.nan, 1.11 / 4, 0.01, 1.11 / 4, 2.01 / 5]
    np.testing.assert_allclose(false_discovery_rate(log_odds), expected)
    assert false_discovery_rate(np.full(3, np.nan)).tolist() == pytest.approx(
        [np.nan] * 3, nan_ok=True
    )
    assert len(false_discovery_rate(np.empty(0))) == 0


@given(st.lists(st.floats(-40, 40) | st.just(math.nan), max_size=40))
def test_fdr_never_falls_with_falling_probability_and_is_one_for_equals(drawn):
    log_odds = np.array(drawn, np.float64)
    rates = false_discovery_rate(log_odds)
    assert np.array_equal(np.isnan(rates), np.isnan(log_odds))
    known = np.flatnonzero(~np.isnan(log_odds))
    order = known[np.argsort(-log_odds[known], kind="stable")]
    assert (np.diff(rates[order]) >= 0).all()
    for value in np.unique(log_odds[known]):
        assert len(set(rates[log_odds == value].tolist())) == 1
    if len(known):
        expected = np.mean(sigmoid(-log_odds[known]))
        assert rates[order[-1]] == pytest.approx(expected)


def test_read_takes_what_asdict_gives():
    assert Calibration.read(PLAIN._asdict()) == PLAIN


@pytest.mark.parametrize(
    "content",
    [
        None,
        {},
        [1.0] * 6,
        {**PLAIN._asdict(), "more": 1.0},
        {**PLAIN._asdict(), "temperature": 0.0},
        {**PLAIN._asdict(), "temperature": "1"},
        {**PLAIN._asdict(), "record_slope": -1.0},
        {**PLAIN._asdict(), "record_centre": math.nan},
        {**PLAIN._asdict(), "prevalence": 1.0},
        {**PLAIN._asdict(), "record_growth": 1.5},
    ],
)
def test_read_refuses_anything_else(content):
    with pytest.raises(ValueError, match=r"must be|out of range"):
        Calibration.read(content)
