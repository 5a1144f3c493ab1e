import logging
import os
import pty
import re
import subprocess
import sys

import pytest
from lightning.pytorch.loggers import CSVLogger

from virnucpro_pl.output import progress
from virnucpro_pl.output.progress import RunProgress


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_line_every_thirty_seconds_with_time_left(clock, caplog):
    caplog.set_level(logging.INFO)
    run = RunProgress(1000, 100)
    for _ in range(59):  # of 1 s each
        clock[0] += 1
        run.update(lambda: {"records": int(clock[0] - 100) * 5, "tokens": 0})
    assert caplog.messages == ["250 of 1000 records, 5.0 records/s, 00:02:30 left"]


def test_line_before_the_first_record_says_no_nonsense(clock, caplog):
    caplog.set_level(logging.INFO)
    run = RunProgress(10, 0, unit="ORFs")
    clock[0] += 31
    run.update(dict)
    assert caplog.messages == ["0 of 10 ORFs, 0.0 ORFs/s, unknown time left"]


def test_line_counts_records_per_second(clock, caplog):
    caplog.set_level(logging.INFO)
    run = RunProgress(400_000, 0)
    clock[0] += 4
    run.update(lambda: {"records": 1, "tokens": 1})
    clock[0] += 36
    run.update(lambda: {"records": 1, "tokens": 400_000})
    assert caplog.messages == ["1 of 400000 records, 0.0 records/s, 185.2 days left"]


def test_loggers_get_curves_over_rows(clock, tmp_path):
    run = RunProgress(100, 20, loggers=[CSVLogger(tmp_path)])
    clock[0] += 40
    run.update(lambda: {"records": 30, "tokens": 4000, "packs": 4, "failures": 1})
    clock[0] += 10
    run.close({"records": 80, "tokens": 10_000, "packs": 8, "failures": 2})
    [file] = tmp_path.rglob("metrics.csv")
    head, *lines = [line.split(",") for line in file.read_text().splitlines()]
    rows = [dict(zip(head, map(float, line), strict=True)) for line in lines]
    assert [row["step"] for row in rows] == [row["rows"] for row in rows] == [50, 100]
    assert [row["tokens_per_second"] for row in rows] == [100, 200]
    assert [row["tokens_per_pack"] for row in rows] == [1000, 1250]
    assert [row["failures"] for row in rows] == [1, 2]


def test_bar_on_a_terminal_counts_rows_of_all(
    weights_file, write_fasta, random_proteins, predict_words, tmp_path
):
    fasta = write_fasta(tmp_path / "in.faa", random_proteins([100] * 40))
    words = predict_words(weights_file, fasta, tmp_path / "out.h5")
    words[words.index("--trainer.enable_progress_bar") + 1] = "true"
    slowly = (
        "import time, virnucpro_pl.predict.sequence_embedder as s\n"
        "step = s.SequenceEmbedder.predict_step\n"
        "def slow(self, *a):\n    time.sleep(0.2)\n    return step(self, *a)\n"
        "s.SequenceEmbedder.predict_step = slow\n"
        "from virnucpro_pl.cli.main import main\nmain()\n"
    )
    (tmp_path / "slow.py").write_text(slowly)
    terminal, end = pty.openpty()
    command = subprocess.Popen(
        [sys.executable, tmp_path / "slow.py", *map(str, words)],
        stdin=subprocess.DEVNULL, stdout=end, stderr=end,
        env={**os.environ, "COLUMNS": "120", "TERM": "xterm"},
    )  # fmt: skip
    os.close(end)
    shown = b""
    try:
        while piece := os.read(terminal, 65_536):
            shown += piece
    except OSError:  # the terminal is gone with the command
        pass
    finally:
        os.close(terminal)
    assert command.wait(60) == 0, shown
    counts = [int(n) for n in re.findall(rb"(\d+) of 40 records", shown)]
    assert counts[0] == 0
    assert any(0 < count < 40 for count in counts)
    assert re.search(rb"[\d,.]+ records/s, 00:00:\d\d left", shown)
    assert b"it/s" not in shown
