"""Parts that give way to receipts: whatever is killed when, every row is in one or the other."""

import json
import os
import random
import signal
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest

from virnucpro_pl.output import merge as merge_module
from virnucpro_pl.output import receipts
from virnucpro_pl.output.merge import Merge
from virnucpro_pl.output.part_file import Part, read_part
from virnucpro_pl.output.parts_folder import PartsFolder
from virnucpro_pl.output.quiet_file import QuietFile
from virnucpro_pl.output.receipts import receipts_in, true_receipts
from virnucpro_pl.stability import FAILED, FINE, RECOMPUTED

COUNT, WIDTH = 23, 5
ROWS = np.random.default_rng(0).permutation(COUNT)
"""Scattered, as packs of like lengths are."""
VECTORS = np.random.default_rng(1).normal(size=(COUNT, WIDTH)).astype(np.float32)
OUTCOME = np.where(np.arange(COUNT) % 7 == 3, RECOMPUTED, FINE).astype(np.uint8)
OUTCOME[11], VECTORS[11] = FAILED, np.nan


def ids(rows):
    return [f"p{row} ü" for row in rows]


@pytest.fixture(autouse=True)
def _all_parts_give_way(monkeypatch):
    monkeypatch.setattr(merge_module, "KEPT_BYTES", 0)


def begin(folder):
    """Lock the folder of an output, and see which rows are committed."""
    run = PartsFolder(folder / "out.h5", overwrite=False)
    run.claim()
    check = partial(
        true_receipts, half_made=run.half_made, count=COUNT, width=WIDTH, dtype="float32"
    )
    return run, run.resume(COUNT, lambda: {"model": "m"}, check)


def begin_merge(run):
    return Merge(
        run.output,
        run.half_made,
        column="embeddings",
        count=COUNT,
        ids=ids,
        width=WIDTH,
        receipts=receipts_in(run.path),
    )


def commit(run, rows):
    columns = {"embeddings": VECTORS[rows], "outcome": OUTCOME[rows]}
    run.commit(0, Part(rows, ids(rows), columns))


def compute(folder, note=lambda rows: None, stop_at=COUNT):
    """Run to the end: commit what is missing, merge part by part, publish."""
    run, done = begin(folder)
    run.manifest.write(lambda: {"model": "m"})
    merge = begin_merge(run)
    missing = [row for row in ROWS[:stop_at] if not done[row]]
    for start in range(0, len(missing), 4):
        rows = np.array(missing[start : start + 4])
        commit(run, rows)
        note(rows)
        if start % 8 == 4:  # there are parts that are not merged, too
            merge.take(run.files(), most=1)
    if stop_at == COUNT:
        merge.take(run.files())
        merge.publish(lengths=np.arange(COUNT), attributes={"model": "m"})
        run.remove()
    merge.discard()
    run.release()
    return done


def assert_published(folder):
    with h5py.File(folder / "out.h5") as file:
        np.testing.assert_array_equal(file["embeddings"][:], VECTORS)
        assert file["sequence_ids"].asstr()[:].tolist() == ids(range(COUNT))
        assert file["failed"][:].tolist() == [11]
        assert file["recomputed"][:].tolist() == np.flatnonzero(OUTCOME == RECOMPUTED).tolist()
        assert file.attrs["complete"]
    assert [path.name for path in folder.iterdir() if path.suffix != ".log"] == ["out.h5"]


def committed_rows(run):
    return sorted(row for path in run.committed() for row in read_part(path).rows.tolist())


def kill_at(step, folder):
    """Run in a child that is killed before a step on the disk; whether it came so far."""
    log = folder / "rows.log"
    child = os.fork()
    if child == 0:
        left = [step]

        def counted(function):
            def call(*arguments, **options):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)

            return call

        for place, name in (
            *((os, "pwrite"), (os, "fsync"), (os, "open"), (Path, "unlink"), (Path, "replace")),
            *((QuietFile, "write"), (QuietFile, "truncate"), (QuietFile, "close")),
        ):
            setattr(place, name, counted(getattr(place, name)))

        def note(rows):
            with log.open("a") as file:
                file.write(json.dumps(rows.tolist()) + "\n")

        try:
            compute(folder, note)
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def rows_noted(folder):
    lines = (folder / "rows.log").read_text().splitlines() if (folder / "rows.log").exists() else ()
    return {row for line in lines for row in json.loads(line)}


@pytest.fixture
def _no_flush(monkeypatch):
    """A kill, unlike a power cut, takes nothing that was written."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.mark.slow
@pytest.mark.usefixtures("_no_flush")
def test_kill_before_every_second_step_on_the_disk_loses_no_committed_row(tmp_path):
    step = killed = 0
    while True:
        folder = tmp_path / str(step)
        folder.mkdir()
        if not kill_at(step, folder):
            break
        if not (folder / "out.h5").exists():
            done = compute(folder)
            killed += 1
            assert set(np.flatnonzero(done)) >= rows_noted(folder)
            assert_published(folder)
        step += 2
    assert_published(folder)
    assert killed > 50


@pytest.mark.slow
@pytest.mark.usefixtures("_no_flush")
@pytest.mark.parametrize("seed", range(8))
def test_kills_one_after_the_other_lose_no_committed_row(tmp_path, seed):
    chance = random.Random(seed)
    while kill_at(chance.randrange(90), tmp_path) and not (tmp_path / "out.h5").exists():
        run, done = begin(tmp_path)
        assert set(np.flatnonzero(done)) >= rows_noted(tmp_path)
        assert len(committed_rows(run)) == done.sum() == run.count_kept()
        run.release()
    if not (tmp_path / "out.h5.parts").exists():
        assert_published(tmp_path)


def test_receipt_comes_after_its_rows_and_before_its_part_goes(tmp_path, monkeypatch):
    events = []

    def told(place, name, say):
        function = getattr(place, name)

        def call(*arguments, **options):
            events.append(say(*arguments))
            return function(*arguments, **options)

        monkeypatch.setattr(place, name, call)

    def name_of(descriptor):
        return Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.split("-")[0]

    run, _ = begin(tmp_path)
    commit(run, ROWS[:4])
    merge = begin_merge(run)
    told(os, "pwrite", lambda descriptor, *_: f"write {name_of(descriptor)}")
    told(os, "fsync", lambda descriptor: f"flush {name_of(descriptor)}")
    told(Path, "replace", lambda path, new: f"rename {new.name.split('-')[0]}")
    told(Path, "unlink", lambda path, **_: f"remove {path.name.split('-')[0]}")
    merge.take(run.files())
    monkeypatch.undo()
    merge.discard()
    run.release()
    assert [event for event in dict.fromkeys(events) if "remove ." not in event] == [
        *("write half", "flush half", "flush .tmp", "rename receipt"),
        *("flush out.h5.parts", "remove part"),
    ]


def test_parts_stay_while_they_take_little(tmp_path, monkeypatch):
    monkeypatch.setattr(merge_module, "KEPT_BYTES", 1 << 20)
    compute(tmp_path, stop_at=12)
    folder = tmp_path / "out.h5.parts"
    assert len(list(folder.glob("part-*"))) == 3
    assert not receipts_in(folder)
    assert not (folder / "half-made.h5").exists()


@pytest.fixture
def interrupted(tmp_path):
    """Leave receipts for four rows and a part of as many, none of which is merged."""
    compute(tmp_path, stop_at=8)
    folder = tmp_path / "out.h5.parts"
    assert [len(list(folder.glob(f"{kind}-*.h5"))) for kind in ("receipt", "part")] == [1, 1]
    return folder


def damage(path, how):
    content = path.read_bytes()
    if how == "flipped":
        at = content.index(VECTORS[ROWS[1]].tobytes())
        content = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    path.write_bytes(content[:300] if how == "cut" else content)
    if how == "gone":
        path.unlink()


@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_rows_that_are_not_as_the_receipt_says_are_computed_again(
    interrupted, tmp_path, caplog, how
):
    damage(interrupted / "half-made.h5", how)
    done = compute(tmp_path)
    assert sorted(np.flatnonzero(done)) == sorted(ROWS[4:8])
    assert "is not true: its rows will be computed again" in caplog.text
    assert_published(tmp_path)


def test_damaged_receipt_is_reported_and_its_rows_are_computed_again(interrupted, tmp_path, caplog):
    [receipt] = receipts_in(interrupted)
    receipt.write_bytes(receipt.read_bytes()[:-50])
    assert compute(tmp_path).sum() == 4
    assert "is damaged" in caplog.text
    assert_published(tmp_path)


def test_part_that_a_kill_has_left_beside_its_receipt_is_counted_once(interrupted, tmp_path):
    run = PartsFolder(tmp_path / "out.h5", overwrite=False)
    [receipt] = receipts_in(interrupted)
    rows = np.array(read_part(receipt).rows)
    run._pending = receipts.part_of(receipt).name
    commit(run, rows)
    assert run.count_kept() == 8
    assert compute(tmp_path).sum() == 8
    assert_published(tmp_path)


def test_starting_over_removes_receipts_and_rows(interrupted, tmp_path):
    run = PartsFolder(tmp_path / "out.h5", overwrite=True)
    run.claim()
    assert not run.resume(COUNT, lambda: {"model": "m"}).any()
    assert not run.committed()
    run.discard()
    run.release()
    assert not interrupted.exists()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.*")}


def test_receipts_of_another_run_are_kept_when_it_is_refused(interrupted, tmp_path):
    before = contents(interrupted)
    run = PartsFolder(tmp_path / "out.h5", overwrite=False)
    run.claim()
    with pytest.raises(Exception, match="model was 'm' and is 'other'"):
        run.resume(COUNT, lambda: {"model": "other"})
    run.discard()
    run.release()
    assert contents(interrupted) == before
