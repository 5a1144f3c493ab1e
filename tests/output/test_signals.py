import os
import signal
import sys
import weakref

import pytest

from virnucpro_pl.output.signals import Signals


class Thing:
    pass


@pytest.fixture
def signals(monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)  # not pytest's own
    signals = Signals()
    signals.install()
    yield signals
    signals.restore()


def drop_a_thing_whose_callback(does):
    thing = Thing()
    reference = weakref.ref(thing, lambda _: does())
    del thing
    assert reference() is None


def test_signal_within_a_callback_prints_no_traceback_and_ends_the_run_at_the_next_check(
    signals, capfd
):
    drop_a_thing_whose_callback(lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert "Traceback" not in capfd.readouterr().err
    with pytest.raises(SystemExit) as ended:
        signals.check()
    assert ended.value.code == 143


def test_other_errors_within_a_callback_are_told_as_ever(signals, monkeypatch):
    told = []
    signals.restore()
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    signals.install()
    signals.note(143)
    drop_a_thing_whose_callback(lambda: 1 / 0)
    assert [error.exc_type for error in told] == [ZeroDivisionError]
    signals.install()  # again, after Lightning: what told before is still asked
    drop_a_thing_whose_callback(lambda: 1 / 0)
    assert len(told) == 2
    signals.restore()
    assert sys.unraisablehook == told.append
