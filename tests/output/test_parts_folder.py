"""What a continuation finds, and what it makes of it."""

import errno
import shutil
from pathlib import Path

import numpy as np
import pytest

from virnucpro_pl.errors import OutputError, UsageError
from virnucpro_pl.output import atomic_files
from virnucpro_pl.output.part_file import Part, read_part, write_part
from virnucpro_pl.output.parts_folder import PartsFolder
from virnucpro_pl.stability import FAILED, FINE

MANIFEST = {"model": "m", "on_instability": "skip"}


def part(*rows, outcome=FINE, columns=("embeddings", "outcome")):
    values = {
        "embeddings": np.zeros((len(rows), 3), np.float32),
        "outcome": np.full(len(rows), outcome, np.uint8),
    }
    kept = {name: values[name] for name in columns}
    return Part(np.array(rows, np.int64), [f"p{row}" for row in rows], kept)


@pytest.fixture
def folder(tmp_path):
    """Make the folder of a run that goes on."""
    made = []

    def claim():
        for other in made:
            other.release()
        made.append(PartsFolder(tmp_path / "out.h5", overwrite=False))
        made[-1].claim()
        return made[-1]

    yield claim
    for other in made:
        other.release()


@pytest.fixture
def interrupted(folder):
    """Leave parts behind."""

    def leave(*parts, manifest=MANIFEST):
        run = folder()
        run.manifest.write(lambda: manifest)
        for content in parts:
            run.commit(0, content)
        return folder()

    return leave


def test_rows_whose_commit_failed_late_are_not_committed_twice(folder, monkeypatch):
    run, flush, failures = folder(), atomic_files.flush, [1]

    def fail_once(path):
        if path.is_dir() and failures:
            failures.pop()
            raise OSError(errno.EIO, "input/output error")
        flush(path)

    monkeypatch.setattr(atomic_files, "flush", fail_once)
    with pytest.raises(OutputError, match="input/output error"):
        run.commit(0, part(1, 2))
    run.commit(0, part(1, 2))
    run.commit(0, part(3))
    assert [read_part(path).rows.tolist() for path in run.files()] == [[1, 2], [3]]


def test_doubled_parts_are_taken_once(interrupted, caplog):
    run = interrupted(part(0, 1), part(2))
    first = run.files()[0]
    shutil.copy(first, first.with_name("part-00009-0-0.h5"))
    assert run.resume(5, lambda: MANIFEST).tolist() == [True, True, True, False, False]
    assert len(run.files()) == 2
    assert "will be computed again" in caplog.text


@pytest.mark.parametrize(
    "strange",
    [part(7), part(-1), part(1, columns=["embeddings"]), part(1, 1)],
    ids=["beyond the input", "below zero", "of an older format", "doubled within"],
)
def test_strange_parts_are_computed_again(interrupted, strange):
    run = interrupted(part(0), strange)
    assert run.resume(5, lambda: MANIFEST).tolist() == [True, False, False, False, False]
    assert len(run.files()) == 1


def test_part_of_another_run_is_computed_again(folder):
    run = folder()
    run.resume(5, lambda: MANIFEST)
    run.manifest.write(lambda: MANIFEST)
    run.commit(0, part(0))
    write_part(run.path / "part-00000-1-000009.h5", part(1)._replace(run="another"))
    again = folder()
    assert again.resume(5, lambda: MANIFEST).tolist() == [True, False, False, False, False]
    again.commit(0, part(1))
    assert folder().resume(5, lambda: MANIFEST).tolist() == [True, True, False, False, False]


def test_folder_that_cannot_be_cleared_up_is_named(folder, monkeypatch, caplog):
    run = folder()

    def fail(*arguments, **options):
        raise OSError(errno.EROFS, "read-only file system")

    monkeypatch.setattr(shutil, "rmtree", fail)
    (run.path / "part-00000-1-000000.h5").touch()
    run.manifest.write(lambda: MANIFEST)
    run.discard()
    assert "out.h5.parts cannot be cleared up: [Errno 30] read-only file system" in caplog.text


@pytest.mark.parametrize("content", ["", "null", "[1]", "3", "[" * 100_000])
def test_damaged_manifest_is_refused_and_parts_are_kept(interrupted, content):
    run = interrupted(part(0))
    (run.path / "manifest.json").write_text(content)
    with pytest.raises(UsageError, match=r"manifest\.json is damaged"):
        run.resume(5, lambda: MANIFEST)
    assert len(run.files()) == 1


@pytest.mark.parametrize("policy", ["raise", "fp32"])
def test_rows_left_out_do_not_pass_under_another_policy(interrupted, policy):
    run = interrupted(part(0), part(1, 2, outcome=FAILED))
    with pytest.raises(UsageError, match=f"2 rows .* on_instability was 'skip' and is '{policy}'"):
        run.resume(5, lambda: {**MANIFEST, "on_instability": policy})
    assert run.resume(5, lambda: MANIFEST).sum() == 3


def test_another_policy_continues_where_nothing_was_left_out(interrupted):
    run = interrupted(part(0))
    assert run.resume(5, lambda: {**MANIFEST, "on_instability": "raise"}).sum() == 1


def test_starting_over_that_is_killed_half_way_leaves_nothing_to_trust(
    interrupted, tmp_path, monkeypatch
):
    interrupted(part(0), part(1), part(2)).release()
    again = PartsFolder(tmp_path / "out.h5", overwrite=True)
    again.claim()
    unlink, removed = Path.unlink, []

    def killed_at_the_second(path, **options):
        if path.name.startswith("part-") and removed:
            raise KeyboardInterrupt
        unlink(path, **options)
        removed.extend([path] if path.name.startswith("part-") else [])

    monkeypatch.setattr(Path, "unlink", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        again.resume(5, lambda: MANIFEST)
    monkeypatch.undo()
    again.release()
    run = PartsFolder(tmp_path / "out.h5", overwrite=False)
    run.claim()
    assert len(run.files()) == 2
    assert run.count_kept() == 0
    assert not run.resume(5, lambda: MANIFEST).any()
    assert not run.files()
    run.release()


def test_rows_that_are_kept_are_those_of_whole_parts_with_a_manifest(interrupted):
    run = interrupted(part(0), part(1, 2))
    assert run.count_kept() == 3
    run.files()[0].write_bytes(b"")
    assert run.count_kept() == 2
    (run.path / "manifest.json").unlink()
    assert run.count_kept() == 0


def test_output_that_was_about_to_be_replaced_comes_back(folder, tmp_path):
    run = folder()
    (run.path / "replaced").write_text("old")
    folder()
    assert (tmp_path / "out.h5").read_text() == "old"


def test_parts_whose_manifest_is_not_there_yet_are_discarded(folder, tmp_path):
    run = folder()
    run.commit(1, part(0))
    run.discard()
    assert not list(tmp_path.iterdir())


def test_manifest_is_not_waited_for_while_it_takes_long(folder):
    import threading

    run, known = folder(), threading.Event()

    def provenance():
        known.wait(30)
        return MANIFEST

    run.manifest.write_soon(provenance)
    run.manifest.wait()
    assert not (run.path / "manifest.json").exists()
    known.set()
    run.manifest.wait(30)
    assert (run.path / "manifest.json").exists()


@pytest.mark.parametrize("key", ["weights", "weights_esm2", "weights_dnabert_s"])
def test_weights_of_another_name_are_no_other_run_but_those_of_another_hash_are(
    folder, interrupted, key
):
    before = MANIFEST | {key: "a.pt", f"{key}_sha256": "1"}
    interrupted(part(0), manifest=before)
    assert folder().resume(2, lambda: before | {key: "b.pt"}).tolist() == [True, False]
    with pytest.raises(UsageError, match=rf"run: {key}_sha256 was '1'"):
        folder().resume(2, lambda: before | {f"{key}_sha256": "2"})


def test_claim_refuses_existing_output(tmp_path):
    (tmp_path / "out.h5").touch()
    with pytest.raises(UsageError, match="exists already"):
        PartsFolder(tmp_path / "out.h5", overwrite=False).claim()
    assert [path.name for path in tmp_path.iterdir()] == ["out.h5"]


def test_claim_then_discard_leaves_nothing(tmp_path):
    folder = PartsFolder(tmp_path / "a" / "b" / "out.h5", overwrite=False)
    assert folder.claim().is_dir()
    folder.discard()
    folder.release()
    assert not list(tmp_path.iterdir())


def test_discard_keeps_parts_of_an_earlier_run(tmp_path):
    earlier = tmp_path / "out.h5.parts"
    earlier.mkdir()
    (earlier / "part-00000-0-0.h5").touch()
    (earlier / "manifest.json").write_text("{}")
    folder = PartsFolder(tmp_path / "out.h5", overwrite=True)
    folder.claim()
    folder.discard()
    folder.release()
    names = sorted(path.name for path in earlier.iterdir())
    assert names == ["lock", "manifest.json", "part-00000-0-0.h5"]


def test_discard_without_claim_touches_nothing(tmp_path):
    (tmp_path / "out.h5.parts").mkdir()
    PartsFolder(tmp_path / "out.h5", overwrite=False).discard()
    assert (tmp_path / "out.h5.parts").is_dir()


def test_parts_without_manifest_are_not_trusted(tmp_path, caplog):
    earlier = tmp_path / "out.h5.parts"
    earlier.mkdir()
    (earlier / "part-00000-0-0.h5").touch()
    folder = PartsFolder(tmp_path / "out.h5", overwrite=False)
    folder.claim()
    assert not folder.resume(5, dict).any()
    assert "unknown run" in caplog.text
    assert not folder.files()


def test_stale_manifest_without_parts_is_removed(tmp_path):
    earlier = tmp_path / "out.h5.parts"
    earlier.mkdir()
    (earlier / "manifest.json").write_text('{"model": "other"}')
    folder = PartsFolder(tmp_path / "out.h5", overwrite=False)
    folder.claim()
    folder.resume(5, dict)
    assert not (earlier / "manifest.json").exists()
