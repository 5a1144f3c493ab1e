import json
from types import SimpleNamespace

import pytest
import torch

from virnucpro_pl import FailureLog, HDF5Writer, NumericalInstabilityError
from virnucpro_pl.errors import PeerError, UsageError
from virnucpro_pl.output.failures import failures_file

BATCH = SimpleNamespace(ids=("a", "b"))


def trainer(*callbacks, rank=0):
    return SimpleNamespace(global_rank=rank, callbacks=list(callbacks))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def fail(log, trainer, error, batch=BATCH):
    if batch is not None:
        log.on_predict_batch_start(trainer, None, batch, 3)
    log.on_exception(trainer, None, error)


def test_failures_file_stands_beside_output(tmp_path):
    assert failures_file(tmp_path / "out.h5") == tmp_path / "out.h5.failures.jsonl"


@pytest.mark.parametrize(
    ("error", "status", "ids"),
    [
        (NumericalInstabilityError("x", sequence_ids=["b"]), "numerical_instability", ["b"]),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory", ["a", "b"]),
        (RuntimeError("DefaultCPUAllocator: out of memory"), "out_of_memory", ["a", "b"]),
        (
            RuntimeError("[enforce fail] can't allocate memory: 9 bytes"),
            "out_of_memory",
            ["a", "b"],
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), "out_of_memory", ["a", "b"]),
        (MemoryError(), "out_of_memory", ["a", "b"]),
        (ValueError("what"), "error", ["a", "b"]),
    ],
)
def test_failure_is_written_with_rank_batch_status_and_ids(tmp_path, error, status, ids, caplog):
    writer = HDF5Writer(tmp_path / "out.h5")
    fail(FailureLog(), trainer(writer, rank=1), error)
    [line] = lines(tmp_path / "out.h5.failures.jsonl")
    assert set(line) == {"time", "rank", "status", "failed_batch", "sequence_ids", "error"}
    assert (line["rank"], line["failed_batch"]) == (1, 3)
    assert (line["status"], line["sequence_ids"]) == (status, ids)
    assert line["error"].startswith(type(error).__name__)
    assert f"Rank 1, batch 3: {status} of {len(ids)} sequence(s): {', '.join(ids)}" in caplog.text


def test_failure_without_batch_is_written(tmp_path):
    fail(FailureLog(tmp_path / "log.jsonl"), trainer(), ValueError("x"), batch=None)
    [line] = lines(tmp_path / "log.jsonl")
    assert (line["failed_batch"], line["sequence_ids"]) == (None, [])


def test_failure_after_batch_is_not_that_batch(tmp_path):
    log = FailureLog(tmp_path / "log.jsonl")
    log.on_predict_batch_start(trainer(), None, BATCH, 3)
    log.on_predict_batch_end(trainer(), None, None, BATCH, 3)
    fail(log, trainer(), ValueError("x"), batch=None)
    assert lines(tmp_path / "log.jsonl")[0]["sequence_ids"] == []


def test_same_failure_twice_is_written_once(tmp_path):
    log, error = FailureLog(tmp_path / "log.jsonl"), ValueError("x")
    fail(log, trainer(), error)
    fail(log, trainer(), error)
    assert len(lines(tmp_path / "log.jsonl")) == 1


@pytest.mark.parametrize(
    "error",
    [
        UsageError("bad input"),
        PeerError("rank 1 died"),
        KeyboardInterrupt(),
        SystemExit(143),
        RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:9"),
        RuntimeError(
            "[Rank 0]: Rank 1 failed to pass monitoredBarrier in 864000000000 ms\n Original "
            "exception: \n[/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error "
            "[127.0.0.1]:29410: Connection reset by peer."
        ),
    ],
)
def test_others_failures_and_wishes_are_not_written(tmp_path, error):
    fail(FailureLog(tmp_path / "log.jsonl"), trainer(), error)
    assert not (tmp_path / "log.jsonl").exists()


def test_unwritable_file_is_logged_not_raised(tmp_path, caplog):
    fail(FailureLog(tmp_path / "absent" / "log.jsonl"), trainer(), ValueError("x"))
    assert "log.jsonl cannot be written" in caplog.text


def test_without_writer_log_only(tmp_path, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fail(FailureLog(), trainer(), ValueError("x"))
    assert "error of 2 sequence(s)" in caplog.text
    assert not list(tmp_path.iterdir())
