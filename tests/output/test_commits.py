"""Rows are committed exactly once, from a thread, whatever fails on the way."""

import errno
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from virnucpro_pl.errors import OutputError
from virnucpro_pl.output import atomic_files, part_file
from virnucpro_pl.output.commits import Commits
from virnucpro_pl.output.part_file import read_part
from virnucpro_pl.output.parts_folder import PartsFolder


def pack(*rows):
    """Rows, ids and columns of a pack."""
    vectors = torch.tensor(rows)[:, None] * torch.ones(3)
    columns = {"embeddings": vectors, "outcome": torch.zeros(len(rows), dtype=torch.uint8)}
    return torch.tensor(rows), tuple(f"p{row}" for row in rows), columns


@pytest.fixture
def folder(tmp_path):
    folder = PartsFolder(tmp_path / "out.h5", overwrite=False)
    folder.claim()
    yield folder
    folder.release()


@pytest.fixture
def commits(folder):
    made = Commits(partial(folder.commit, 0), lambda: False)
    yield made
    made.close()


def committed(folder):
    """Rows of each part, checked."""
    parts = [read_part(path) for path in folder.files()]
    for content in parts:
        assert content.ids == [f"p{row}" for row in content.rows]
        expected = content.rows[:, None] * np.ones(3)
        np.testing.assert_array_equal(content.columns["embeddings"], expected)
    return [content.rows.tolist() for content in parts]


def wait_until_over(commits):
    while not commits._under_way.done():
        time.sleep(0.001)


def test_packs_are_one_part_a_commit(commits, folder):
    for packs in ([pack(4, 5), pack(2)], [pack(0), pack(3, 1)]):
        for content in packs:
            commits.hold(*content)
        commits.begin()
    commits.finish()
    assert committed(folder) == [[4, 5, 2], [0, 3, 1]]


def test_nothing_held_commits_nothing(commits, folder):
    commits.begin()
    commits.check()
    commits.finish()
    assert not folder.files()


def test_held_bytes_and_time_are_those_of_what_is_held(commits):
    assert commits.held_bytes == 0
    before = time.monotonic()
    commits.hold(*pack(0, 1))
    first = commits.held_since
    assert before <= first <= time.monotonic()
    commits.hold(*pack(2))
    assert (commits.held_bytes, commits.held_since) == (3 * (12 + 1), first)
    commits.begin()
    assert commits.held_bytes == 0
    commits.hold(*pack(3))
    assert commits.held_bytes == 13
    assert commits.held_since > first


# A slow disk ----------------------------------------------------------------------------------


def test_caller_waits_only_for_the_commit_before():
    written, disk = [], threading.Semaphore(0)

    def write(part):
        assert disk.acquire(timeout=30)
        written.append(part.rows.tolist())

    commits = Commits(write, lambda: False)
    commits.hold(*pack(0))
    commits.begin()  # would wait half a minute, and fail
    commits.hold(*pack(1))
    commits.check()
    assert not written
    threading.Timer(0.3, disk.release).start()
    before = time.monotonic()
    commits.begin()
    assert time.monotonic() - before > 0.2
    assert written == [[0]]
    disk.release()
    commits.finish()
    assert written == [[0], [1]]
    commits.close()


def test_close_ends_the_commit_and_the_thread(commits, folder):
    commits.hold(*pack(0))
    commits.begin()
    assert any(thread.name.startswith("commits") for thread in threading.enumerate())
    commits.close()
    assert committed(folder) == [[0]]
    assert not any(thread.name.startswith("commits") for thread in threading.enumerate())


# A disk that fails ------------------------------------------------------------------------------


@pytest.fixture(params=["open", "write", "flush file", "rename", "flush folder"])
def fail(request, monkeypatch, folder):
    """Let a step of so many commits fail from now on."""
    left = [0]

    def failing(function, concerns=lambda *arguments: True):
        def call(*arguments):
            if left[0] and concerns(*arguments):
                left[0] -= 1
                raise OSError(errno.EIO, "input/output error")
            return function(*arguments)

        return call

    match request.param:
        case "open":
            monkeypatch.setattr(part_file, "QuietFile", failing(part_file.QuietFile))
        case "write":

            class Failing(part_file.QuietFile):
                def write(self, data):
                    if left[0] and self.error is None:
                        left[0] -= 1
                        self.error = OSError(errno.EIO, "input/output error")
                    return super().write(data)

            monkeypatch.setattr(part_file, "QuietFile", Failing)
        case "flush file":
            monkeypatch.setattr(atomic_files, "flush", failing(atomic_files.flush, Path.is_file))
        case "rename":
            monkeypatch.setattr(Path, "replace", failing(Path.replace))
        case "flush folder":
            monkeypatch.setattr(atomic_files, "flush", failing(atomic_files.flush, Path.is_dir))
    return partial(left.__setitem__, 0)


def test_commit_that_fails_is_told_once_and_repeated_first(commits, folder, fail):
    commits.hold(*pack(3, 1))
    fail(1)
    commits.begin()
    commits.hold(*pack(2))
    with pytest.raises(OutputError, match="2 finished rows cannot be written"):
        commits.begin()
    commits.check()
    commits.hold(*pack(0))
    commits.finish()
    assert committed(folder) == [[3, 1], [2, 0]]
    assert not list(folder.path.glob(".tmp-*"))


def test_commit_that_fails_is_told_by_the_first_check(commits, folder, fail):
    commits.hold(*pack(0))
    fail(1)
    commits.begin()
    wait_until_over(commits)
    commits.hold(*pack(1))
    with pytest.raises(OutputError, match="input/output error"):
        commits.check()
    assert commits.settle() is None
    commits.finish()
    assert committed(folder) == [[0], [1]]


def test_commit_that_fails_again_and_again_keeps_its_rows(commits, folder, fail):
    commits.hold(*pack(0))
    commits.begin()
    commits.hold(*pack(1))
    assert commits.settle() is None
    fail(4)
    commits.begin()
    commits.hold(*pack(2))
    assert isinstance(commits.settle(), OutputError)
    for _ in range(3):
        with pytest.raises(OutputError, match="1 finished rows"):
            commits.finish()
    commits.begin()
    commits.begin()
    commits.finish()
    assert committed(folder) == [[0], [1], [2]]


def test_rows_of_a_failed_commit_are_in_the_next_run_or_computed_again(commits, folder, fail):
    commits.hold(*pack(0))
    fail(1)
    commits.begin()
    commits.hold(*pack(1))
    assert isinstance(commits.settle(), OutputError)
    commits.close()  # as if the process had died
    assert committed(folder) in ([], [[0]])
