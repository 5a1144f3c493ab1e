import contextlib
import errno
import json
import logging
import os
import re
import signal
import threading
import time

import h5py
import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from virnucpro_pl import FailureLog, HDF5Writer, SequenceDataModule, load_embeddings
from virnucpro_pl.contracts import Embeddings, Inputs, RowModel
from virnucpro_pl.errors import OutputError, UsageError
from virnucpro_pl.input.protein_tokens import ProteinTokenizer
from virnucpro_pl.output import parts_folder
from virnucpro_pl.output.part_file import IncompleteError, read_part
from virnucpro_pl.stability import FAILED, FINE, NumericalInstabilityError


class Counting(LightningModule):
    """Its vector is (row, length): a stand-in without weights, of a user's own."""

    width = 2

    def __init__(self, spoil=None):
        super().__init__()
        self.tokenizer = ProteinTokenizer()
        self.spoil = spoil

    def provenance(self):
        return {"model": "counting", "precision": "32-true", "attention": "none"}

    def predict_step(self, batch, batch_idx=0):
        rows = batch.rows
        vectors = torch.stack((rows, batch.lengths), dim=1).float()
        return self.spoil(batch_idx, rows, vectors) if self.spoil else Embeddings(rows, vectors)


@pytest.fixture
def fasta(tmp_path, write_fasta):
    return write_fasta(tmp_path / "in.faa", ["A" * n for n in range(1, 30)])


def quiet_trainer(writer, **options):
    return Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[writer], **options,
    )  # fmt: skip


def predict(fasta, writer, spoil=None, **options):
    trainer = quiet_trainer(writer, **options)
    data = SequenceDataModule(fasta, tokens_per_batch=70, num_workers=0)
    return trainer, trainer.predict(Counting(spoil), data)


def test_predict_python_writes_the_file_and_keeps_nothing_in_memory(fasta, tmp_path):
    writer = HDF5Writer(tmp_path / "out.h5", commit_seconds=0)
    trainer, returned = predict(fasta, writer)
    assert not returned
    assert not trainer.predict_loop.predictions
    with h5py.File(tmp_path / "out.h5") as file:
        expected = np.stack((np.arange(29), np.arange(1, 30)), axis=1)
        np.testing.assert_array_equal(file["embeddings"], expected)
        assert file.attrs["model"] == "counting"
        for name in ("input_sha256", "package_version", "torch_version", "format_version"):
            assert name in file.attrs
    report = json.loads((tmp_path / "out.h5.run.json").read_text())
    assert report["totals"]["records"] == 29
    assert report["totals"]["tokens"] == sum(range(3, 32))
    assert 0.5 < report["pack_fill"] <= 1
    assert report["resumed_records"] == 0
    assert report["devices"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.faa", "out.h5", "out.h5.run.json"]


class TwoFiles(SequenceDataModule):
    """Its rows are of two files, even and odd ones."""

    @property
    def inputs(self):
        return Inputs(["even.faa", "odd.faa"], (np.arange(29) % 2).astype(np.int32))


def test_file_of_several_inputs_names_that_of_each_row(fasta, tmp_path):
    data = TwoFiles(fasta, tokens_per_batch=70, num_workers=0)
    quiet_trainer(HDF5Writer(tmp_path / "out.h5")).predict(Counting(), data)
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["inputs"].asstr()[:].tolist() == ["even.faa", "odd.faa"]
        assert file["input"][:].tolist() == [row % 2 for row in range(29)]


@pytest.mark.parametrize("option", ["commit_seconds", "stall_seconds"])
def test_seconds_below_zero_raise(tmp_path, option):
    with pytest.raises(UsageError, match=option):
        HDF5Writer(tmp_path / "out.h5", **{option: -1})


def test_stop_iteration_in_a_step_is_no_success(fasta, tmp_path):
    def stop(index, rows, vectors):
        if index == 2:
            raise StopIteration
        return Embeddings(rows, vectors)

    with pytest.raises(IncompleteError, match="15 of 29 records have no result: p14"):
        predict(fasta, HDF5Writer(tmp_path / "out.h5"), stop)
    assert not (tmp_path / "out.h5").exists()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda index, rows, vectors: Embeddings(rows, vectors[:1]),
        lambda index, rows, vectors: Embeddings(rows + 1, vectors),
        lambda index, rows, vectors: Embeddings(rows.flip(0), vectors),
    ],
)
def test_prediction_of_other_rows_raises(fasta, tmp_path, spoil):
    with pytest.raises(IncompleteError, match="Batch 0 has no prediction for each of its rows"):
        predict(fasta, HDF5Writer(tmp_path / "out.h5"), spoil)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.faa"]


def test_limited_run_raises_and_its_rows_are_kept(fasta, tmp_path):
    with pytest.raises(IncompleteError, match="records have no result: p14, p15"):
        predict(fasta, HDF5Writer(tmp_path / "out.h5"), limit_predict_batches=2)
    assert not (tmp_path / "out.h5").exists()
    names = {path.name.partition("-")[0] for path in (tmp_path / "out.h5.parts").iterdir()}
    assert names == {"part", "manifest.json", "lock"}  # no records, no markers
    predict(fasta, HDF5Writer(tmp_path / "out.h5"))
    report = json.loads((tmp_path / "out.h5.run.json").read_text())
    assert report["resumed_records"] == 14
    assert report["totals"]["records"] == 15


def test_same_writer_twice_starts_anew(fasta, tmp_path):
    writer = HDF5Writer(tmp_path / "out.h5", overwrite=True)
    for _ in range(2):
        predict(fasta, writer)
        report = json.loads((tmp_path / "out.h5.run.json").read_text())
        assert report["totals"]["records"] == 29


def test_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "out.h5")
    with pytest.raises(UsageError, match="is not overwritten, since it is no embedding file"):
        HDF5Writer(tmp_path / "out.h5", overwrite=True).check_output()


def test_without_data_module_raises(fasta, tmp_path):
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=[HDF5Writer(tmp_path / "o.h5")])
    with pytest.raises(UsageError, match="needs a data module"):
        trainer.predict(Counting(), torch.utils.data.DataLoader([1]))


# Half precision -------------------------------------------------------------------------------


class LeavesOut(Counting, RowModel):
    """Counts, and goes on without rows that cannot be had."""

    columns = ("vectors",)
    leaves_out_failures = True
    data_needed = "SequenceDataModule"
    input_files = ()

    @property
    def tokenizers(self):
        return (self.tokenizer,)

    def width_of(self, column):
        return self.width


def enlarge(*large):
    """A step whose vectors of some rows hold a number beyond float16, and of row 0 a tiny one."""

    def step(index, rows, vectors):
        vectors[torch.isin(rows, torch.tensor(large)), 1] = 65_520.0
        vectors[rows == 0, 0] = 1e-30
        return Embeddings(rows, vectors)

    return step


def test_float16_halves_the_vectors_and_is_read_as_float32(fasta, tmp_path):
    predict(fasta, HDF5Writer(tmp_path / "out.h5", dtype="float16"), enlarge())
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["embeddings"].dtype == np.float16
        assert file["embeddings"].id.get_storage_size() == 29 * 2 * 2
        assert file.attrs["dtype"] == "float16"
        assert len(file["failed"]) == 0
    with load_embeddings(tmp_path / "out.h5") as embeddings:
        vectors = embeddings[:]
    assert vectors.dtype == np.float32
    assert vectors.tolist() == [[row, row + 1] for row in range(29)]
    predict(fasta, HDF5Writer(tmp_path / "full.h5"))
    with h5py.File(tmp_path / "full.h5") as file:
        assert file.attrs["dtype"] == file["embeddings"].dtype == "float32"


def test_float16_row_that_does_not_fit_ends_the_run_and_is_named(fasta, tmp_path):
    log = FailureLog()
    trainer = quiet_trainer(HDF5Writer(tmp_path / "out.h5", commit_seconds=0, dtype="float16"))
    trainer.callbacks.append(log)
    data = SequenceDataModule(fasta, tokens_per_batch=70, num_workers=0)
    message = r"up to 6\.55e\+04, .*--writer\.dtype float32"
    with pytest.raises(NumericalInstabilityError, match=message) as ended:
        trainer.predict(Counting(enlarge(20, 21)), data)
    assert ended.value.exit_code == 3
    assert ended.value.sequence_ids == ["p20", "p21"]
    assert ended.value.inf_count == 2
    [failure] = map(json.loads, (tmp_path / "out.h5.failures.jsonl").read_text().splitlines())
    assert failure["status"] == "numerical_instability"
    assert failure["sequence_ids"] == ["p20", "p21"]
    assert failure["failed_batch"] == 4
    assert not (tmp_path / "out.h5").exists()
    with pytest.raises(UsageError, match="dtype was 'float16' and is 'float32'"):
        predict(fasta, HDF5Writer(tmp_path / "out.h5"), enlarge())
    predict(fasta, HDF5Writer(tmp_path / "out.h5", dtype="float16"), enlarge())
    assert json.loads((tmp_path / "out.h5.run.json").read_text())["resumed_records"] > 0


def test_float16_row_that_does_not_fit_is_left_out_where_the_model_leaves_failures_out(
    fasta, tmp_path, caplog
):
    caplog.set_level(logging.INFO)
    trainer = quiet_trainer(HDF5Writer(tmp_path / "out.h5", dtype="float16"))
    trainer.callbacks.append(FailureLog())
    data = SequenceDataModule(fasta, tokens_per_batch=70, num_workers=0)
    trainer.predict(LeavesOut(enlarge(3, 20)), data)
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["failed"][:].tolist() == [3, 20]
        assert np.flatnonzero(np.isnan(file["embeddings"][:]).all(axis=1)).tolist() == [3, 20]
        assert np.isfinite(np.delete(file["embeddings"][:], [3, 20], axis=0)).all()
    lines = (tmp_path / "out.h5.failures.jsonl").read_text().splitlines()
    assert [json.loads(line)["sequence_ids"] for line in lines] == [["p3"], ["p20"]]
    assert json.loads((tmp_path / "out.h5.run.json").read_text())["failed_rows"] == 2
    assert caplog.messages[-2] == "29 records: 27 vectors of 2 numbers, 2 without"


def test_other_dtype_is_refused(tmp_path):
    with pytest.raises(UsageError, match="float32 or float16, not float64"):
        HDF5Writer(tmp_path / "out.h5", dtype="float64")


# Commits --------------------------------------------------------------------------------------


def commit_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("commits")]


def test_packs_are_computed_while_a_commit_is_under_way(fasta, tmp_path, monkeypatch):
    second_pack, waited = threading.Event(), []

    def write_part(path, part):
        waited.append(second_pack.wait(20))
        write(path, part)

    def step(index, rows, vectors):
        if index == 1:
            second_pack.set()
        return Embeddings(rows, vectors)

    write = parts_folder.write_part
    monkeypatch.setattr(parts_folder, "write_part", write_part)
    predict(fasta, HDF5Writer(tmp_path / "out.h5", commit_seconds=0), step)
    assert len(waited) > 2
    assert all(waited)
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["embeddings"][:, 0].tolist() == list(range(29))


@pytest.mark.parametrize("row", [0, 14, 28], ids=["first", "middle", "last"])
@pytest.mark.parametrize("late", [False, True], ids=["before it has its name", "after"])
def test_commit_that_fails_ends_the_run_and_no_row_is_lost_or_doubled(
    fasta, tmp_path, monkeypatch, row, late
):
    write, computed, failures = parts_folder.write_part, [], []

    def step(index, rows, vectors):
        computed.extend(rows.tolist())
        return Embeddings(rows, vectors)

    def write_part(path, part):
        fails = row in part.rows and not failures
        if late or not fails:
            write(path, part)
        if fails:
            failures.append(path)
            raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(parts_folder, "write_part", write_part)
    with pytest.raises(OutputError, match="input/output error"):
        predict(fasta, HDF5Writer(tmp_path / "out.h5", commit_seconds=0), step)
    assert not commit_threads()
    files = (tmp_path / "out.h5.parts").glob("part-*.h5")
    assert sorted(r for path in files for r in read_part(path).rows) == sorted(computed)
    assert row in computed
    predict(fasta, HDF5Writer(tmp_path / "out.h5"))
    with h5py.File(tmp_path / "out.h5") as file:
        expected = np.stack((np.arange(29), np.arange(1, 30)), axis=1)
        np.testing.assert_array_equal(file["embeddings"], expected)
    report = json.loads((tmp_path / "out.h5.run.json").read_text())
    assert report["resumed_records"] == len(computed)


def test_no_thread_is_left_and_workers_are_forked_without_one(fasta, tmp_path, monkeypatch):
    seen = []

    def step(index, rows, vectors):
        if index == 0:
            seen.append(len(commit_threads()))
        return Embeddings(rows, vectors)

    writer = HDF5Writer(tmp_path / "out.h5", overwrite=True, commit_seconds=0)
    data = SequenceDataModule(fasta, tokens_per_batch=70, num_workers=2)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[writer],
    )  # fmt: skip
    for _ in range(2):
        trainer.predict(Counting(step), data)
        assert not commit_threads()
    assert seen == [0, 0]
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["embeddings"][:, 0].tolist() == list(range(29))


def test_parts_are_merged_while_packs_are_computed(fasta, tmp_path, monkeypatch):
    gathered = []

    class Watched(HDF5Writer):
        def gather(self, run, parts):
            super().gather(run, parts)
            gathered.append(int(self._merge._tally.seen.sum()))

        def publish(self, *arguments):
            gathered.append("publish")
            return super().publish(*arguments)

    predict(fasta, Watched(tmp_path / "out.h5", commit_seconds=0))
    assert gathered[-1] == "publish"
    assert len(gathered) > 3
    assert gathered[:-1] == sorted(gathered[:-1])
    assert (gathered[0] > 0, gathered[-2]) == (True, 29)
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["embeddings"][:, 0].tolist() == list(range(29))


def test_disk_holds_little_more_than_the_finished_file(write_fasta, tmp_path, monkeypatch):
    monkeypatch.setattr("virnucpro_pl.output.merge.KEPT_BYTES", 100_000)
    peak, ended = [0], threading.Event()

    def watch():
        while not ended.wait(0.001):
            files = (path.stat() for path in folder.rglob("*") if path.is_file())
            with contextlib.suppress(OSError):  # some vanish meanwhile
                peak.append(sum(512 * file.st_blocks for file in files))

    class Wide(Counting):
        width = 2000

    def widen(index, rows, vectors):
        time.sleep(0.01)
        return Embeddings(rows, vectors[:, :1].expand(-1, 2000).contiguous())

    folder = tmp_path / "out.h5.parts"
    fasta = write_fasta(tmp_path / "in.faa", ["ACD"] * 700)
    data = SequenceDataModule(fasta, tokens_per_batch=70, num_workers=0)
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        writer = HDF5Writer(tmp_path / "out.h5", commit_seconds=0)
        quiet_trainer(writer).predict(Wide(widen), data)
    finally:
        ended.set()
        watcher.join()
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["embeddings"][:, 1999].tolist() == list(range(700))
    size = (tmp_path / "out.h5").stat().st_size
    assert 0.8 * size < max(peak) < 1.2 * size


class Unlucky(HDF5Writer):
    """Fails in the thread, once it has merged a part."""

    error = None

    def gather(self, run, parts):
        super().gather(run, parts)
        raise self.error


@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyError("x"), MemoryError("x")])
def test_merge_that_fails_meanwhile_is_done_at_the_end(fasta, tmp_path, caplog, error):
    writer = Unlucky(tmp_path / "out.h5", commit_seconds=0)
    writer.error = error
    predict(fasta, writer)
    assert caplog.text.count("Parts cannot be merged yet: ") == 1
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["embeddings"][:, 0].tolist() == list(range(29))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["in.faa", "out.h5", "out.h5.run.json"]


def test_packs_are_computed_while_a_part_is_merged(fasta, tmp_path):
    done, waited = threading.Event(), []

    class Slow(HDF5Writer):
        def gather(self, run, parts):
            waited.append(done.wait(20))
            return super().gather(run, parts)

    def step(index, rows, vectors):
        if index == 2:
            done.set()
        return Embeddings(rows, vectors)

    predict(fasta, Slow(tmp_path / "out.h5", commit_seconds=0), step)
    assert waited
    assert all(waited)
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["embeddings"][:, 0].tolist() == list(range(29))


def test_run_that_fails_merges_no_more(fasta, tmp_path):
    failed, gathered = [], []

    class Watched(HDF5Writer):
        def gather(self, run, parts):
            gathered.append(bool(failed))
            return super().gather(run, parts)

        def on_exception(self, trainer, pl_module, exception):
            self._run.commits.rest()
            failed.append(exception)
            super().on_exception(trainer, pl_module, exception)

    def step(index, rows, vectors):
        if rows[-1] == 28:
            raise ValueError("the last pack")
        return Embeddings(rows, vectors)

    with pytest.raises(ValueError, match="the last pack"):
        predict(fasta, Watched(tmp_path / "out.h5", commit_seconds=0), step)
    assert gathered
    assert not any(gathered)
    assert not list((tmp_path / "out.h5.parts").glob(".tmp*"))


def test_pack_that_fails_while_a_commit_does_loses_nothing(fasta, tmp_path, monkeypatch):
    write, failures, failing = parts_folder.write_part, [], threading.Event()

    def write_part(path, part):
        if not failures:
            failures.append(path)
            failing.wait(20)
            raise OSError(errno.EIO, "input/output error")
        write(path, part)

    def step(index, rows, vectors):
        if index == 1:
            failing.set()
            raise ValueError("the second pack")
        return Embeddings(rows, vectors)

    monkeypatch.setattr(parts_folder, "write_part", write_part)
    with pytest.raises(ValueError, match="the second pack"):
        predict(fasta, HDF5Writer(tmp_path / "out.h5", commit_seconds=0), step)
    [path] = (tmp_path / "out.h5.parts").glob("part-*.h5")
    assert path == failures[0]
    assert read_part(path).rows.tolist() == list(range(len(read_part(path).rows)))


def test_interrupted_run_leaves_no_merge_behind(fasta, tmp_path):
    writer = HDF5Writer(tmp_path / "out.h5", commit_seconds=0)
    with pytest.raises(IncompleteError):
        predict(fasta, writer, limit_predict_batches=3)
    assert not list((tmp_path / "out.h5.parts").glob(".tmp*"))
    assert writer._merge is None


# Signals --------------------------------------------------------------------------------------


@pytest.fixture
def handlers():
    """Set handlers of one's own, and ask for them and try them after each run."""
    received = []

    def handle(number, frame):
        received.append(number)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, handle) for number in numbers}

    def are_back():
        received.clear()
        for number in numbers:
            os.kill(os.getpid(), number)
        kept = all(signal.getsignal(number) is handle for number in numbers)
        return kept and received == list(numbers)

    yield are_back
    for number, handler in before.items():
        signal.signal(number, handler)


def ends_in(kind):
    """A step that ends a run in its second pack; and what ends it."""

    def step(index, rows, vectors):
        if index == 1 and kind == "error":
            raise ValueError("the second pack")
        if index == 1 and kind == "Ctrl-C":
            raise KeyboardInterrupt
        if index == 1 and isinstance(kind, signal.Signals):
            os.kill(os.getpid(), kind)
        return Embeddings(rows, vectors)

    return step, {"good": None, "error": ValueError}.get(kind, SystemExit)


def run_through(trainer, fasta, kind):
    step, error = ends_in(kind)
    data = SequenceDataModule(fasta, tokens_per_batch=70, num_workers=0)
    if error is None:
        trainer.predict(Counting(step), data)
    else:
        with pytest.raises(error):
            trainer.predict(Counting(step), data)


KINDS = ["good", "error", "Ctrl-C", signal.SIGTERM, signal.SIGINT]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trainers", [1, 2])
def test_handlers_of_before_are_back_whatever_ends_a_run(fasta, tmp_path, handlers, trainers, kind):
    made = [quiet_trainer(HDF5Writer(tmp_path / "out.h5", overwrite=True)) for _ in range(trainers)]
    for trainer, ends in zip((made[0], made[-1], made[0]), (kind, "good", kind), strict=True):
        run_through(trainer, fasta, ends)
        assert handlers()


@pytest.mark.parametrize("hook", ["prepare_data", "setup", "configure_model"])
def test_handlers_of_before_are_back_after_ctrl_c_while_loading(fasta, tmp_path, handlers, hook):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    model = Counting()
    setattr(model, hook, interrupt)
    data = SequenceDataModule(fasta, tokens_per_batch=70, num_workers=0)
    with pytest.raises(SystemExit):
        quiet_trainer(HDF5Writer(tmp_path / "out.h5")).predict(model, data)
    assert handlers()


def test_run_in_another_thread_leaves_handlers_alone(fasta, tmp_path, handlers):
    thread = threading.Thread(target=predict, args=(fasta, HDF5Writer(tmp_path / "out.h5")))
    thread.start()
    thread.join(60)
    assert (tmp_path / "out.h5").exists()
    assert handlers()


def signals_in(row, *gaps):
    """A step that gets SIGTERM in the pack of a row, and again after so many seconds each."""
    computed = []

    def step(index, rows, vectors):
        computed.extend(rows.tolist())
        if row in rows:
            os.kill(os.getpid(), signal.SIGTERM)
            for gap in gaps:
                time.sleep(gap)
                os.kill(os.getpid(), signal.SIGTERM)
        return Embeddings(rows, vectors)

    return step, computed


def kept_rows(tmp_path):
    files = (tmp_path / "out.h5.parts").glob("part-*.h5")
    return sorted(row for path in files for row in read_part(path).rows.tolist())


def assert_resumes(fasta, tmp_path):
    predict(fasta, HDF5Writer(tmp_path / "out.h5"))
    with h5py.File(tmp_path / "out.h5") as file:
        expected = np.stack((np.arange(29), np.arange(1, 30)), axis=1)
        np.testing.assert_array_equal(file["embeddings"], expected)


def test_second_signal_stops_within_the_pack_and_what_is_committed_is_whole(
    fasta, tmp_path, monkeypatch, handlers
):
    write, step_began = parts_folder.write_part, threading.Event()
    signals, computed = signals_in(14, 0.4)
    third = threading.Timer(0.8, os.kill, (os.getpid(), signal.SIGTERM))

    def write_slowly(path, part):  # the commit under way at both signals is waited for
        step_began.wait(20)
        time.sleep(1)
        write(path, part)

    def step(index, rows, vectors):
        if 14 in rows:
            step_began.set()
            third.start()  # it finds the run waiting for that commit, and changes nothing
        return signals(index, rows, vectors)

    monkeypatch.setattr(parts_folder, "write_part", write_slowly)
    writer = HDF5Writer(tmp_path / "out.h5", commit_seconds=0)
    with pytest.raises(SystemExit) as ended:
        predict(fasta, writer, step)
    third.join()
    assert ended.value.code == 143
    assert handlers()
    assert computed[-1] >= 14
    assert kept_rows(tmp_path) == list(range(14))
    monkeypatch.undo()
    assert_resumes(fasta, tmp_path)


def test_signal_that_is_sent_twice_at_once_is_one(fasta, tmp_path):
    step, computed = signals_in(14, 0.01)  # as `timeout` does
    with pytest.raises(SystemExit):
        predict(fasta, HDF5Writer(tmp_path / "out.h5"), step)
    assert kept_rows(tmp_path) == computed
    assert 14 in computed
    assert_resumes(fasta, tmp_path)


def test_signal_while_held_rows_are_committed_after_an_error_keeps_what_is_whole(
    fasta, tmp_path, monkeypatch
):
    write = parts_folder.write_part

    def write_slowly(path, part):
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGTERM)).start()
        time.sleep(1.2)
        write(path, part)

    def step(index, rows, vectors):
        if index == 1:
            raise ValueError("the second pack")
        return Embeddings(rows, vectors)

    monkeypatch.setattr(parts_folder, "write_part", write_slowly)
    with pytest.raises(ValueError, match="the second pack"):
        predict(fasta, HDF5Writer(tmp_path / "out.h5"), step)
    assert kept_rows(tmp_path)  # the commit was under way
    monkeypatch.undo()
    assert_resumes(fasta, tmp_path)


# The last line --------------------------------------------------------------------------------


def test_last_lines_of_a_good_run_count_vectors_and_say_where_they_are(fasta, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    predict(fasta, HDF5Writer(tmp_path / "out.h5"))
    assert caplog.messages[-2] == "29 records: 29 vectors of 2 numbers"
    assert caplog.messages[-1].startswith(f"Wrote {tmp_path / 'out.h5'}. Look at it with: ")

    def lose_two(index, rows, vectors):
        return Embeddings(rows, vectors, torch.where((rows == 3) | (rows == 20), FAILED, FINE))

    predict(fasta, HDF5Writer(tmp_path / "out.h5", overwrite=True), lose_two)
    assert caplog.messages[-2] == "29 records: 27 vectors of 2 numbers, 2 without"


@pytest.mark.parametrize("first", ["new", "replaced"])
def test_interrupted_run_says_what_is_kept_and_how_it_goes_on(fasta, tmp_path, caplog, first):
    output, parts = tmp_path / "out.h5", tmp_path / "out.h5.parts"
    if first == "replaced":
        predict(fasta, HDF5Writer(output))
    run_through(
        quiet_trainer(HDF5Writer(output, overwrite=first == "replaced")), fasta, signal.SIGTERM
    )
    kept = sum(len(read_part(path).rows) for path in parts.glob("part-*.h5"))
    assert kept > 0
    again = "the same command"
    if first == "replaced":
        again += f" with --writer.overwrite false, with {output} moved away,"
    last = f"Stopped: {kept} of 29 records are kept in {parts}; {again} goes on from there"
    assert caplog.messages[-1] == last
    waits = "SIGTERM: stopping once this pack is committed; again to stop at once"
    assert caplog.messages.count(waits) == 1


def test_failed_run_says_what_is_kept_in_a_note(fasta, tmp_path):
    def fail(index, rows, vectors):
        if index == 1:
            raise ValueError("the second pack")
        return Embeddings(rows, vectors)

    with pytest.raises(ValueError, match="the second pack") as failed:
        predict(fasta, HDF5Writer(tmp_path / "out.h5"), fail)
    [note] = failed.value.__notes__
    assert re.fullmatch(r"Stopped: \d+ of 29 records are kept in .*; the same command .*", note)


def test_failure_with_nothing_kept_says_nothing_of_it(fasta, tmp_path):
    def fail(index, rows, vectors):
        raise ValueError("the first pack")

    with pytest.raises(ValueError, match="the first pack") as failed:
        predict(fasta, HDF5Writer(tmp_path / "out.h5"), fail)
    assert not hasattr(failed.value, "__notes__")


# The end ------------------------------------------------------------------------------------


def test_folder_is_no_place_for_a_file(tmp_path):
    with pytest.raises(UsageError, match="is a folder"):
        HDF5Writer(tmp_path, overwrite=True).claim([])


class Interrupted(Callback):
    """Ends the run once the output is published."""

    def teardown(self, trainer, pl_module, stage):
        raise SystemExit(143)


def test_run_that_ends_behind_its_output_does_not_say_that_nothing_is_kept(fasta, tmp_path, caplog):
    trainer = quiet_trainer(HDF5Writer(tmp_path / "out.h5"))
    trainer.callbacks.append(Interrupted())
    with pytest.raises(SystemExit):
        trainer.predict(Counting(), SequenceDataModule(fasta, num_workers=0))
    assert (tmp_path / "out.h5").exists()
    assert "Stopped" not in caplog.text


def test_report_that_cannot_be_written_leaves_the_output_whole(fasta, tmp_path, caplog):
    (tmp_path / "out.h5.run.json").mkdir()
    predict(fasta, HDF5Writer(tmp_path / "out.h5"))
    assert (tmp_path / "out.h5").exists()
    assert not (tmp_path / "out.h5.parts").exists()
    assert "The output is whole, but " in caplog.text
