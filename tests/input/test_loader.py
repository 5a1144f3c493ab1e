"""A rank's batches: from processes that start when they are needed, and whose end is told."""

import multiprocessing
import os
import signal
import subprocess
import sys
from multiprocessing.reduction import ForkingPickler
from textwrap import dedent

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from virnucpro_pl.errors import WorkerError
from virnucpro_pl.input.loader import PackLoader
from virnucpro_pl.input.packed_batch import pack
from virnucpro_pl.input.protein_tokens import ProteinTokenizer


class Numbers(Dataset):
    """Tensors 0, 1, ...; one that is `fatal` ends its worker instead."""

    def __init__(self, count, fatal=-1):
        self.count, self.fatal = count, fatal

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index >= self.count:
            raise IndexError
        if index == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.tensor([index])


def load(packs, workers):
    return iter(PackLoader(packs, workers, torch.device("cpu")))


def test_iterator_that_is_asked_for_nothing_starts_no_worker():
    batches = load(Numbers(3), workers=1)
    assert not multiprocessing.active_children()
    assert next(batches).item() == 0
    assert len(multiprocessing.active_children()) == 1
    assert [batch.item() for batch in batches] == [1, 2]


@pytest.mark.parametrize("handler", [signal.SIG_DFL, lambda *_: None], ids=["none", "a handler"])
def test_handler_of_childrens_ends_stays_what_it_was(handler):
    before = signal.signal(signal.SIGCHLD, handler)
    try:
        list(load(Numbers(2), workers=1))
        assert signal.getsignal(signal.SIGCHLD) == handler
    finally:
        signal.signal(signal.SIGCHLD, before)


@pytest.mark.parametrize("fatal", [0, 3])
def test_killed_worker_is_told_where_its_batch_is_asked_for(fatal):
    seen = []
    with pytest.raises(WorkerError, match=r"fewer --data\.num_workers"):
        seen.extend(batch.item() for batch in load(Numbers(6, fatal), workers=2))
    assert seen == sorted(seen)
    assert fatal not in seen


def batch_of(count):
    ids = [f"row {row} of a name as long as some have, é" for row in range(count)]
    spread = np.zeros(count, np.int64)
    return pack(np.arange(count), ids, [b"MKV"], ProteinTokenizer(), spread=spread)


@pytest.mark.parametrize("count", [1, 2, 8193])
def test_batch_of_many_rows_is_a_short_message_that_arrives_whole(count):
    batch = batch_of(count)
    message = bytes(ForkingPickler.dumps(batch))
    assert len(message) < 4096  # so much a pipe takes at once, whatever else is in it
    arrived = ForkingPickler.loads(message)
    assert arrived.ids == batch.ids
    assert torch.equal(arrived.rows, batch.rows)
    assert torch.equal(arrived.spread, batch.spread)
    assert type(arrived) is type(batch)


@pytest.mark.parametrize("which", [0, 1])
def test_killed_worker_with_large_batches_does_not_leave_the_rank_waiting(which):
    script = """
        import os, signal, sys, time
        import torch
        from torch.utils.data import Dataset
        from tests.input.test_loader import batch_of
        from virnucpro_pl.errors import WorkerError
        from virnucpro_pl.input import loader

        class Large(Dataset):
            def __len__(self):
                return 20
            def __getitem__(self, index):
                return [batch_of(8193)]

        batches = iter(loader.PackLoader(Large(), 2, torch.device("cpu")))
        next(batches)
        time.sleep(3)  # both have sent all that they send ahead
        os.kill(sorted(worker.pid for worker in loader._workers)[int(sys.argv[1])], signal.SIGKILL)
        try:
            list(batches)
        except WorkerError:
            print("told")
    """
    ended = subprocess.run(
        [sys.executable, "-c", dedent(script), str(which)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ended.stdout == "told\n", ended.stderr
