"""The tables of `fit` come back as they were measured, and damaged ones do not."""

import numpy as np
import pytest

from virnucpro_pl.errors import InputError
from virnucpro_pl.measures import (
    Reliability,
    confusion_at,
    reliability,
    write_calibration,
    write_thresholds,
)
from virnucpro_pl.plot.measure_tables import read_reliability, read_thresholds

LABELS = np.array([0, 1, 0, 1, 1])
SCORES = np.array([0.0, 0.17, 0.17, 0.98, 1.0])


@pytest.fixture
def calibration(tmp_path):
    path = tmp_path / "calibration.tsv"
    write_calibration(
        path, {"a": reliability(LABELS, SCORES), "b": reliability(LABELS, 1 - SCORES)}
    )
    return path


@pytest.fixture
def thresholds(tmp_path):
    path = tmp_path / "thresholds.tsv"
    write_thresholds(
        path, {"a": confusion_at(LABELS, SCORES), "b": confusion_at(LABELS, LABELS / 2)}
    )
    return path


def test_tables_come_back_as_they_were_measured(calibration, thresholds):
    for name, scores in (("a", SCORES), ("b", 1 - SCORES)):
        read, measured = read_reliability(calibration, "ab")[name], reliability(LABELS, scores)
        for field in Reliability._fields:
            np.testing.assert_allclose(getattr(read, field), getattr(measured, field), rtol=1e-5)
        np.testing.assert_array_equal(np.isnan(read.observed), measured.n == 0)
    [read] = read_thresholds(thresholds, "b").values()
    for column, expected in zip(read, confusion_at(LABELS, LABELS / 2), strict=True):
        np.testing.assert_array_equal(column, expected)


@pytest.mark.parametrize(
    ("line", "old", "new", "message"),
    [
        (1, "n_virus", "viruses", "has no column n_virus"),
        (3, "\t0.2\t", "\t0.2\t\t", "line 3: 10 columns, not 9"),
        (3, "\t2\t", "\tx\t", "line 3: invalid literal"),
        (3, "\t2\t", "\t3\t", "lines of a are not whole, or do not add up"),
        (3, "\t2\t", "\t-2\t", "lines of a are not whole, or do not add up"),
        (3, "\t0.17\t", "\t1.7\t", "lines of a are not whole, or do not add up"),
        (3, "\t0.17\t", "\tNA\t", "lines of a are not whole, or do not add up"),
        (3, "\t0.2\t", "\t0.25\t", "lines of a are not whole, or do not add up"),
        (12, "a\t0\t1", "a\t0.1\t1", "lines of a are not whole, or do not add up"),
        (12, "a\t", "c\t", "lines of a are not whole, or do not add up"),
        (13, "b\t0\t", "a\t0\t", "lines of a are not whole, or do not add up"),
    ],
)
def test_damaged_calibration_raises(calibration, line, old, new, message):
    replace(calibration, line, old, new)
    with pytest.raises(InputError, match=message):
        read_reliability(calibration, "ab")


@pytest.mark.parametrize(
    ("line", "old", "new", "message"),
    [
        (2, "a\t0.01\t5", "a\t0.01\t6", "lines of a are not whole, or do not add up"),
        (2, "\t3\t1\t", "\t3\t2\t", "lines of a are not whole, or do not add up"),
        (3, "0.02", "0.01", "lines of a are not whole, or do not add up"),
        (150, "b\t0.5\t", "b\t0.505\t", "lines of b are not whole, or do not add up"),
        (150, "b\t0.5\t", "c\t0.5\t", "lines of b are not whole, or do not add up"),
    ],
)
def test_damaged_thresholds_raise(thresholds, line, old, new, message):
    replace(thresholds, line, old, new)
    with pytest.raises(InputError, match=message):
        read_thresholds(thresholds, "ab")


def replace(path, number, old, new):
    lines = path.read_text().splitlines(keepends=True)
    assert old in lines[number - 1], lines[number - 1]
    lines[number - 1] = lines[number - 1].replace(old, new, 1)
    path.write_text("".join(lines))


@pytest.mark.parametrize("name", ["calibration", "thresholds"])
def test_table_cut_off_at_any_place_raises_or_loses_nothing_that_is_read(name, request):
    path = request.getfixturevalue(name)
    read = read_reliability if name == "calibration" else read_thresholds
    text, whole = path.read_text(), read(path, "ab")
    refused = 0
    for size in range(len(text) - 200, len(text)):
        path.write_text(text[:size])
        try:
            np.testing.assert_equal(read(path, "ab"), whole)
        except InputError:
            refused += 1
    assert refused > 190


def test_table_without_a_set_raises(thresholds):
    with pytest.raises(InputError, match="has no line of c: it is cut off"):
        read_thresholds(thresholds, "ac")
