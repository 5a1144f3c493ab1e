import logging

import pytest

from virnucpro_pl.output import report
from virnucpro_pl.output.report import Heartbeat, RunReport


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [100.0]
    monkeypatch.setattr(report.time, "monotonic", lambda: now[0])
    return now


def test_heartbeat_every_thirty_seconds_with_time_left(clock, caplog):
    caplog.set_level(logging.INFO)
    heart = Heartbeat(records=1000, resumed=100)
    for _ in range(59):  # of 1 s each
        clock[0] += 1
        heart.beat(lambda: {"records": int(clock[0] - 100) * 5, "tokens": 0})
    assert caplog.messages == ["250 of 1000 records, 0 tokens/s, 00:02:30 left"]


def test_heartbeat_before_the_first_record_says_no_nonsense(clock, caplog):
    caplog.set_level(logging.INFO)
    heart = Heartbeat(records=10, resumed=0)
    clock[0] += 31
    heart.beat(dict)
    assert "0 of 10 records" in caplog.text


def test_heartbeat_counts_tokens_per_second(clock, caplog):
    caplog.set_level(logging.INFO)
    heart = Heartbeat(records=400_000, resumed=0)
    clock[0] += 40
    heart.beat(lambda: {"records": 1, "tokens": 4000})
    assert caplog.messages == ["1 of 400000 records, 100 tokens/s, 185.2 days left"]


def test_report_counts_packs():
    counts = RunReport()
    counts.packed(3, 40)
    counts.packed(2, 30)
    assert counts.counts == {"records": 5, "tokens": 70, "packs": 2, "failures": 0}
