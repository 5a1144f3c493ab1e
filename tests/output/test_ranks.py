"""What ranks tell each other at the end: who is done is waited for no longer, and not stalled."""

import threading
import time

import pytest

from virnucpro_pl.errors import OutputError, PeerError
from virnucpro_pl.output.ranks import Ranks

COUNTS = [{"records": 3}, {"records": 4}]


@pytest.fixture
def join(tmp_path):
    """Let a rank of two join the run; none computes, so that none ends this process."""
    joined = []

    def join(rank, stall_seconds=1000.0):
        joined.append(Ranks(tmp_path / "ranks", rank, 2, [], stall_seconds))
        return joined[-1]

    (tmp_path / "ranks").mkdir()
    yield join
    for rank in joined:
        rank.close()


def look(rank, seconds):
    """Look for failures so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        rank.check()
        time.sleep(0.05)


def test_rank_that_is_done_early_is_not_stalled(join, tmp_path):
    first, second, returned = join(0), join(1, stall_seconds=0.3), []
    waiting = threading.Thread(target=lambda: returned.append(first.finish(COUNTS[0])))
    waiting.start()
    while not (tmp_path / "ranks" / "rank-0.done").exists():
        time.sleep(0.01)
    look(second, 1.0)
    returned.append(second.finish(COUNTS[1]))
    waiting.join(30)
    assert sorted(returned) == [[], COUNTS]  # only rank 0 needs them


def test_rank_that_is_silent_is_stalled(join):
    join(0)
    with pytest.raises(PeerError, match="rank 0 stalled"):
        look(join(1, stall_seconds=0.3), 10)


def test_rank_0_waits_until_the_others_have_seen_that_all_are_done(join, tmp_path):
    first, ended = join(0), threading.Event()

    def finish():
        first.finish(COUNTS[0])
        ended.set()

    waiting = threading.Thread(target=finish)
    waiting.start()
    (tmp_path / "ranks" / "rank-1.done").write_text('{"records": 4}')
    assert not ended.wait(0.5)
    (tmp_path / "ranks" / "rank-1.left").touch()
    assert ended.wait(2)  # sooner than one that is gone without a word
    waiting.join(30)


def test_counts_that_cannot_be_read_are_named_all(tmp_path, caplog):
    ranks = tmp_path / "ranks"
    ranks.mkdir()
    for rank, text in ((1, ""), (2, '{"records": 4}'), (3, "{")):
        (ranks / f"rank-{rank}.done").write_text(text)
        (ranks / f"rank-{rank}.left").touch()
    counts = Ranks(ranks, 0, 4, [], 1000.0).finish(COUNTS[0])
    assert counts == [COUNTS[0], {}, COUNTS[1], {}]
    [record] = caplog.records
    assert record.getMessage() == "The counts of ranks 1, 3 cannot be read: they count as 0"


def test_rank_that_comes_late_takes_a_folder_that_is_gone_for_the_end(join, tmp_path, caplog):
    second = join(1)
    late = threading.Thread(target=second.finish, args=(COUNTS[1],), daemon=True)
    late.start()
    while not (tmp_path / "ranks" / "rank-1.done").exists():
        time.sleep(0.01)
    (tmp_path / "ranks").rename(tmp_path / "gone")
    late.join(30)
    assert not late.is_alive()
    assert not caplog.records


def test_disk_that_takes_nothing_any_more_ends_a_rank_with_a_message(join, tmp_path):
    rank = join(0)
    (tmp_path / "ranks").rmdir()
    (tmp_path / "ranks").touch()  # stops root, too
    with pytest.raises(OutputError, match=r"rank-0\.done cannot be written.*What is committed"):
        rank.finish(COUNTS[0])
    rank.fail("no room", 1)
    assert rank.leave(lambda: True)
