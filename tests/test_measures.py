"""Measures against scikit-learn and torchmetrics on random tables, and a few worked out by hand."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn
from sklearn.calibration import calibration_curve
from torchmetrics.functional import classification as torchmetrics

from virnucpro_pl.measures import (
    THRESHOLDS,
    Confusion,
    brier_score,
    confusion_at,
    ranking,
    reliability,
    write_calibration,
    write_thresholds,
)


def table(seed: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Random labels and scores; with `ties` scores of two digits, many of them on a threshold."""
    random = np.random.default_rng(seed)
    count = int(random.integers(2, 400))
    labels = (random.random(count) < random.random()).astype(np.int64)
    labels[:2] = 0, 1
    scores = np.clip(random.normal(0.4 + 0.2 * labels, 0.25), 0, 1)
    if kind == "constant":
        scores[:] = random.integers(0, 101) / 100
    if kind in ("viruses", "others"):
        labels[:] = kind == "viruses"
    if kind == "ties":
        scores = np.round(scores, 2)
    return labels, scores.astype(random.choice([np.float32, np.float64]))


KINDS = ("plain", "ties", "constant", "viruses", "others")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_confusion_equals_scikit_learn(kind, seed):
    labels, scores = table(seed, kind)
    measured = confusion_at(labels, scores)
    for place, threshold in enumerate(THRESHOLDS):
        called = scores >= scores.dtype.type(threshold)
        expected = sklearn.confusion_matrix(labels, called, labels=[0, 1]).ravel()  # tn fp fn tp
        assert [column[place] for column in measured[1:]] == expected[[3, 1, 0, 2]].tolist()
        options = {"zero_division": np.nan}
        for name, function in (
            ("precision", sklearn.precision_score),
            ("recall", sklearn.recall_score),
            ("f1", sklearn.f1_score),
        ):
            wanted = function(labels, called, **options)
            np.testing.assert_allclose(getattr(measured, name)[place], wanted, rtol=1e-12)
        right = sklearn.accuracy_score(labels, called)
        np.testing.assert_allclose(measured.accuracy[place], right, rtol=1e-12)
        if labels.min() != labels.max() and called.min() != called.max():
            wanted = sklearn.matthews_corrcoef(labels, called)
            np.testing.assert_allclose(measured.matthews_correlation[place], wanted, atol=1e-12)
        else:
            assert np.isnan(measured.matthews_correlation[place])
    others = labels == 0
    rates = [np.mean(scores[others] >= scores.dtype.type(t)) for t in THRESHOLDS if others.any()]
    np.testing.assert_allclose(measured.false_positive_rate, rates or np.full(99, np.nan))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_ranking_equals_scikit_learn_and_torchmetrics(kind, seed):
    labels, scores = table(seed, kind)
    measured = ranking(labels, scores)
    tensors = torch.from_numpy(scores), torch.from_numpy(labels)
    if kind in ("viruses", "others"):
        assert np.isnan(measured.auroc)
    else:
        wanted = sklearn.roc_auc_score(labels, scores)
        assert measured.auroc == pytest.approx(wanted, abs=1e-12)
        wanted = float(torchmetrics.binary_auroc(*tensors))
        assert measured.auroc == pytest.approx(wanted, abs=1e-5)
    if kind == "others":
        assert np.isnan(measured.average_precision)
    else:
        wanted = sklearn.average_precision_score(labels, scores)
        assert measured.average_precision == pytest.approx(wanted, abs=1e-12)
        wanted = float(torchmetrics.binary_average_precision(*tensors))
        assert measured.average_precision == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("kind", ["plain", "constant", "viruses", "others"])
@pytest.mark.parametrize("seed", range(8))
def test_reliability_equals_scikit_learn_and_torchmetrics(kind, seed):
    labels, scores = table(seed, kind)
    # Neither at 0 nor on the end of a bin: scikit-learn counts those to the bin below.
    scores = np.where(scores * 10 % 1 == 0, scores + 0.003, scores).astype(scores.dtype)
    scores = np.where(scores > 1, scores.dtype.type(0.997), scores)
    measured = reliability(labels, scores)
    observed, claimed = calibration_curve(labels, scores, n_bins=10)
    filled = measured.n > 0
    np.testing.assert_allclose(measured.observed[filled], observed, rtol=1e-9)
    np.testing.assert_allclose(measured.mean_probability[filled], claimed, rtol=1e-6)
    assert np.isnan(measured.observed[~filled]).all()
    tensors = torch.from_numpy(scores), torch.from_numpy(labels)
    wanted = float(torchmetrics.binary_calibration_error(*tensors, n_bins=10, norm="l1"))
    assert measured.expected_calibration_error == pytest.approx(wanted, abs=1e-5)
    wanted = sklearn.brier_score_loss(labels, scores, pos_label=1)
    assert brier_score(labels, scores) == pytest.approx(wanted, rel=1e-6)
    assert measured.brier_score == pytest.approx(wanted, rel=1e-6)


def test_thresholds_are_hundredths():
    assert [repr(threshold) for threshold in THRESHOLDS.tolist()] == [
        repr(k / 100) for k in range(1, 100)
    ]


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_score_written_as_a_threshold_has_reached_it(kind):
    for threshold in THRESHOLDS:
        score = np.array([threshold]).astype(kind)
        below = np.nextafter(score, kind(0))
        scores = np.concatenate([score, below])
        measured = confusion_at(np.ones(2, np.int64), scores, np.array([threshold]))
        assert measured.true_positives.tolist() == [1]
        bins = reliability(np.ones(2, np.int64), scores, bins=100)
        assert bins.n[round(threshold * 100) - 1 : round(threshold * 100) + 1].tolist() == [1, 1]


def test_measures_of_nothing_are_undefined():
    nothing = np.empty(0, np.int64), np.empty(0, np.float32)
    measured = confusion_at(*nothing)
    assert not measured.n.any()
    for name in ("precision", "recall", "false_positive_rate", "f1", "accuracy"):
        assert np.isnan(getattr(measured, name)).all()
    assert np.isnan(measured.matthews_correlation).all()
    assert np.isnan(ranking(*nothing)).all()
    assert np.isnan(brier_score(*nothing))
    assert np.isnan(reliability(*nothing).expected_calibration_error)


def test_sums_over_parts_are_those_of_the_whole(monkeypatch):
    labels, scores = table(3, "ties")
    parts = [confusion_at(labels[part], scores[part]) for part in (slice(0, 7), slice(7, None))]
    whole = confusion_at(labels, scores)
    assert all(map(np.array_equal, parts[0].combined(parts[1]), whole))
    with pytest.raises(ValueError, match="other thresholds"):
        whole.combined(confusion_at(labels, scores, THRESHOLDS[1:]))
    bins = [reliability(labels[part], scores[part]) for part in (slice(0, 7), slice(7, None))]
    for one, other in zip(bins[0].combined(bins[1]), reliability(labels, scores), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
    with pytest.raises(ValueError, match="other bins"):
        bins[0].combined(reliability(labels, scores, bins=5))
    monkeypatch.setattr("virnucpro_pl.measures._BLOCK", 7)
    assert all(map(np.array_equal, confusion_at(labels, scores), whole))


def test_items_without_a_score_are_never_called():
    labels, scores = np.array([1, 1, 0]), np.array([0.9, 0.2, 0.8])
    measured = confusion_at(labels, scores, np.array([0.5])).with_uncalled(2, 5)
    expected = Confusion(*map(np.array, ([0.5], [1], [1], [5], [3])))
    assert all(map(np.array_equal, measured, expected))
    assert measured.recall.tolist() == [0.25]


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 1], [0.5, np.nan], "is NaN"),
        ([0, 2], [0.5, 0.5], "label of 0 or 1"),
        ([0], [0.5, 0.5], "label of 0 or 1"),
    ],
)
@pytest.mark.parametrize("function", [confusion_at, ranking, reliability])
def test_what_cannot_be_measured_is_refused(function, labels, scores, message):
    with pytest.raises(ValueError, match=message):
        function(np.array(labels), np.array(scores))


def test_no_probability_is_refused():
    with pytest.raises(ValueError, match="from 0 to 1"):
        reliability(np.array([0, 1]), np.array([0.5, 1.5]))


def test_tables_have_a_line_for_each_threshold_and_bin(tmp_path):
    labels, scores = np.array([0, 1, 1]), np.array([0.25, 0.25, 1], np.float32)
    sets = {
        "orfs": confusion_at(labels, scores, np.array([0.25, 0.3])),
        "records": confusion_at(labels[:1], scores[:1], np.array([0.3])),
    }
    write_thresholds(tmp_path / "thresholds.tsv", sets)
    assert (tmp_path / "thresholds.tsv").read_text() == (
        "of\tthreshold\tn\tn_virus\ttrue_positives\tfalse_positives\ttrue_negatives"
        "\tfalse_negatives\tprecision\trecall\tfalse_positive_rate\tf1\n"
        "orfs\t0.25\t3\t2\t2\t1\t0\t0\t0.666667\t1\t1\t0.8\n"
        "orfs\t0.3\t3\t2\t1\t0\t1\t1\t1\t0.5\t0\t0.666667\n"
        "records\t0.3\t1\t0\t0\t0\t1\t0\tNA\tNA\t0\tNA\n"
    )
    write_calibration(tmp_path / "calibration.tsv", {"after": reliability(labels, scores, 2)})
    assert (tmp_path / "calibration.tsv").read_text() == (
        "of\tlower\tupper\tn\tn_virus\tmean_probability\tobserved\tcalibration_error\tbrier_score\n"
        "after\t0\t0.5\t2\t1\t0.25\t0.5\t0.25\t0.3125\n"
        "after\t0.5\t1\t1\t1\t1\t1\t0\t0\n"
        "after\t0\t1\t3\t2\t0.5\t0.666667\t0.166667\t0.208333\n"
    )


def test_measures_are_imported_without_torch():
    code = "import sys, virnucpro_pl.measures; print({'torch', 'sklearn'} & sys.modules.keys())"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "set()"
