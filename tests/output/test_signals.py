import contextlib
import os
import signal
import sys
import threading
import time
import weakref

import pytest

from virnucpro_pl.output.signals import Signals


class Thing:
    pass


@pytest.fixture(autouse=True)
def hook(monkeypatch):
    """Python's own in place of pytest's."""
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)


@pytest.fixture
def signals():
    before = signal.getsignal(signal.SIGTERM)
    signals = Signals()
    signals.install()
    yield signals
    signals.restore()
    signal.signal(signal.SIGTERM, before)


def drop_a_thing_whose_callback(does):
    thing = Thing()
    reference = weakref.ref(thing, lambda _: does())
    del thing
    assert reference() is None


def terminate_within_a_callback_and_go_on():
    drop_a_thing_whose_callback(terminate)
    time.sleep(10)


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def fail():
    raise ZeroDivisionError


def test_signal_within_a_callback_ends_the_run_behind_it_without_a_traceback(
    signals, capfd, caplog
):
    with pytest.raises(SystemExit) as ended:
        terminate_within_a_callback_and_go_on()
    assert ended.value.code == 143
    assert "Traceback" not in capfd.readouterr().err
    assert caplog.messages == ["SIGTERM: stopping"]


def test_signal_that_is_sent_twice_at_once_within_a_callback_is_one(signals, capfd, monkeypatch):
    start = threading.Timer.start

    def start_late(timer):
        terminate()  # the second comes while the first is looked after
        start(timer)

    monkeypatch.setattr(threading.Timer, "start", start_late)
    with pytest.raises(SystemExit):
        terminate_within_a_callback_and_go_on()
    assert not signals.urgent
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("ends", [Signals.check, Signals.restore])
def test_signal_within_a_callback_is_not_sent_once_more_behind_the_end(signals, ends):
    stray = []
    drop_a_thing_whose_callback(terminate)
    with contextlib.suppress(SystemExit):  # of `check`
        ends(signals)
    signal.signal(signal.SIGTERM, lambda *_: stray.append(1))
    time.sleep(0.2)
    assert not stray


def test_second_signal_within_a_callback_ends_the_pack(signals):
    signals.patient = True
    terminate()
    time.sleep(0.4)  # two signals at once are one
    with pytest.raises(SystemExit):
        terminate_within_a_callback_and_go_on()
    assert signals.urgent
    assert signals.shielded


def test_signal_that_the_first_of_two_missed_is_taken_by_the_second(signals):
    drop_a_thing_whose_callback(terminate)
    other = Signals()
    other.install()
    with pytest.raises(SystemExit):
        time.sleep(10)
    assert (signals.code, other.code) == (143, 143)
    other.restore()


def test_other_errors_within_a_callback_are_told_as_ever(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    first, second = Signals(), Signals()
    for signals in (first, second, first):  # Lightning sets its own between
        signals.install()
        signals.note(143)
    before = sys.unraisablehook
    monkeypatch.setattr(sys, "unraisablehook", lambda ignored: before(ignored))
    first.install()
    drop_a_thing_whose_callback(fail)
    assert [error.exc_type for error in told] == [ZeroDivisionError]
    sys.unraisablehook = before
    second.restore()
    first.restore()
    assert sys.unraisablehook == told.append
