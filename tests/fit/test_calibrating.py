"""Probabilities learnt on held-out records are right on new ones, and so are rates of wrong calls.

The truth is known: a feature of each class is normal, so that the log-odds of virus are a line.
"""

import numpy as np
import pytest

from virnucpro_pl.calibration import logit, score_log_odds, sigmoid
from virnucpro_pl.fit.calibrating import calibrate
from virnucpro_pl.fit.held_out import HeldOut
from virnucpro_pl.measures import reliability
from virnucpro_pl.output.chunk_table import summarise_chunks
from virnucpro_pl.output.tables import summarise_contigs

PREVALENCE = 0.3
DISTANCE = 3.0
"""Of the classes' means, in standard deviations."""
SEEDS = range(20)


def scores_of(log_odds):
    return np.stack([sigmoid(-log_odds), sigmoid(log_odds)], axis=1).astype(np.float32)


def draw(seed, count, most_chunks, scale=3.0, prevalence=PREVALENCE, trained_for=PREVALENCE):
    """Records of one ORF a chunk, and scores of a network that is `scale` times too sure.

    Args:
        seed: Of the draw.
        count: Records.
        most_chunks: Chunks of a record, at most.
        scale: By which the true log-odds are multiplied.
        prevalence: Share of virus.
        trained_for: Share of virus by which the network judges.
    """
    generator = np.random.default_rng(seed)
    is_virus = (generator.random(count) < prevalence).astype(np.int64)
    n_chunks = generator.integers(1, most_chunks + 1, count)
    record = np.repeat(np.arange(count), n_chunks)
    feature = DISTANCE * (is_virus[record] - 0.5) + generator.normal(size=len(record))
    log_odds = DISTANCE * feature + logit(trained_for)
    chunk = np.arange(len(record))
    return HeldOut(scores_of(scale * log_odds), is_virus[record], chunk, record), log_odds


def called(held_out, calibration, **options):
    """What contigs.tsv says of these records."""
    n_chunks = held_out.record_chunks
    chunk = held_out.chunk - (np.cumsum(n_chunks) - n_chunks)[held_out.record]
    frame = np.zeros(len(chunk), np.int8)
    chunks = summarise_chunks(n_chunks, held_out.record, chunk, frame, held_out.scores)
    return summarise_contigs(500 * n_chunks, chunks, calibration=calibration, **options)


def test_scores_that_are_three_times_too_sure_are_brought_back():
    held_out, log_odds = draw(0, 6000, 1)
    known = calibrate(held_out)
    assert known.temperature == pytest.approx(3, rel=0.08)
    calibrated = sigmoid(known.orf_log_odds(score_log_odds(held_out.scores)))
    assert np.abs(calibrated - sigmoid(log_odds)).mean() < 0.01
    assert known.prevalence == pytest.approx(PREVALENCE, abs=0.02)


@pytest.mark.parametrize("most_chunks", [1, 12])
def test_probability_of_a_record_is_right(most_chunks):
    errors, before = [], []
    for seed in SEEDS:
        known = calibrate(draw(seed, 4000, most_chunks)[0])
        new, _ = draw(1000 + seed, 10000, most_chunks)
        calls, labels = called(new, known), new.record_labels
        probabilities = calls.probabilities.virus_probability
        errors.append(reliability(labels, probabilities).expected_calibration_error)
        before.append(reliability(labels, calls.virus_score).expected_calibration_error)
    assert max(errors) < 0.02
    assert min(before) > 0.02


@pytest.mark.parametrize(
    ("most_chunks", "n_held_out", "n_new"), [(1, 16000, 60000), (12, 4000, 12000)]
)
@pytest.mark.parametrize("prevalence", [None, 0.05])
def test_share_of_wrong_calls_is_the_one_asked_for(most_chunks, n_held_out, n_new, prevalence):
    shares = []
    for seed in SEEDS:
        known = calibrate(draw(seed, n_held_out, most_chunks)[0])
        new, _ = draw(1000 + seed, n_new, most_chunks, prevalence=prevalence or PREVALENCE)
        calls = called(new, known, max_fdr=0.05, prevalence=prevalence)
        assert calls.probabilities.fdr[calls.is_virus].max() <= 0.05
        shares.append(1 - new.record_labels[calls.is_virus].mean())
    assert 0.03 < min(shares) <= max(shares) < 0.07, shares


def test_another_prevalence_left_out_makes_the_rate_wrong():
    known = calibrate(draw(0, 8000, 1)[0])
    new, _ = draw(1000, 60000, 1, prevalence=0.05)
    calls = called(new, known, max_fdr=0.05)
    assert 1 - new.record_labels[calls.is_virus].mean() > 0.1


def test_weights_in_the_loss_are_taken_out():
    # Weights by which both classes count the same make a network judge as if there were as many.
    held_out, _ = draw(0, 6000, 1, trained_for=0.5)
    weight = (1 - PREVALENCE) / PREVALENCE
    known = calibrate(held_out, loss_log_odds=np.log(weight))
    assert known.temperature == pytest.approx(3, rel=0.08)
    calibrated = sigmoid(known.orf_log_odds(score_log_odds(held_out.scores)))
    assert reliability(held_out.labels, calibrated).expected_calibration_error < 0.02


def test_a_handful_of_separable_records_gives_no_certainty(caplog):
    labels = np.array([0, 0, 1, 1])
    held_out = HeldOut(scores_of(20.0 * labels - 10), labels, np.arange(4), np.arange(4))
    known = calibrate(held_out)
    assert np.isfinite(known).all()
    calls = called(held_out, known).probabilities.virus_probability
    assert calls[0] < 0.5 < calls[2] < 1
    assert "are rough: of the smaller class, only 2 record(s) are held out" in caplog.text


@pytest.mark.parametrize("most_chunks", [50, 300])
def test_long_records_of_weak_chunks_give_finite_numbers(most_chunks):
    for seed in range(12):
        generator = np.random.default_rng(seed)
        labels = (generator.random(400) < 0.1).astype(np.int64)
        record = np.repeat(np.arange(400), generator.integers(1, most_chunks + 1, 400))
        log_odds = 2.0 * labels[record] - 1 + 3 * generator.normal(size=len(record))
        known = calibrate(
            HeldOut(scores_of(log_odds), labels[record], np.arange(len(record)), record)
        )
        assert np.isfinite(known).all()
        assert 0 <= known.record_growth <= 1


def test_records_have_the_mean_of_the_best_of_their_chunks():
    scores = scores_of(np.array([1.0, 3.0, -1.0, 5.0]))
    held_out = HeldOut(
        scores, np.array([1, 1, 1, 0]), np.array([0, 0, 1, 2]), np.array([0, 0, 0, 1])
    )
    assert held_out.record_chunks.tolist() == [2, 1]
    assert held_out.record_labels.tolist() == [1, 0]
    np.testing.assert_allclose(held_out.record_means(score_log_odds(scores)), [1.0, 5.0], rtol=1e-6)
    calls = called(held_out, None)
    np.testing.assert_array_equal(
        calls.virus_score, held_out.record_means(scores[:, 1]).astype("f4")
    )
    assert np.isnan(calls.probabilities.virus_probability).all()
