"""A rank's batches: from processes that start when they are needed, and whose end is told."""

import multiprocessing
import os
import signal

import pytest
import torch
from torch.utils.data import Dataset

from virnucpro_pl.errors import WorkerError
from virnucpro_pl.input.loader import PackLoader


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
