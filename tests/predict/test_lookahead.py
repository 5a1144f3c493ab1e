"""Work queued a batch ahead, as on a GPU; here forced on a CPU."""

import json

import pytest
import torch
from lightning.pytorch import Trainer

from virnucpro_pl import (
    ESM2Embedder,
    HDF5Writer,
    NumericalInstabilityError,
    SequenceDataModule,
)
from virnucpro_pl.input.loader import with_following
from virnucpro_pl.input.packed_batch import pack
from virnucpro_pl.input.protein_tokens import ProteinTokenizer
from virnucpro_pl.predict.lookahead import Launched

LENGTHS = [20, 35, 7, 50, 3, 41, 12, 60, 58]


def predict(model, path, *callbacks, **options):
    trainer = Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=list(callbacks), **options,
    )  # fmt: skip
    return trainer.predict(model, SequenceDataModule(path, tokens_per_batch=60, num_workers=0))


class Watched(ESM2Embedder):
    """Notes what was launched and collected, by the rows of each batch."""

    def on_predict_start(self):
        super().on_predict_start()
        self.events = []

    def launch(self, batch):
        self.events.append(("launch", batch.rows.tolist()))
        return super().launch(batch)

    def predict_step(self, batch, batch_idx=0):
        found = super().predict_step(batch, batch_idx)
        self.events.append(("collect", found.rows.tolist()))
        return found


@pytest.fixture
def fasta(random_proteins, write_fasta, tmp_path):
    return write_fasta(tmp_path / "in.faa", random_proteins(LENGTHS))


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_with_following_every_batch_once_with_the_one_behind_it(count):
    batches = [
        pack(torch.tensor([i]).numpy(), [str(i)], [b"A" * (i + 1)], ProteinTokenizer())
        for i in range(count)
    ]
    found = list(with_following(iter(batches)))
    assert [batch.rows.item() for batch in found] == list(range(count))
    behind = [batch.following and batch.following.rows.item() for batch in found]
    assert behind == [*range(1, count), None][:count]


def test_each_batch_is_launched_once_and_before_the_last_one_is_collected(
    weights_file, fasta, look_ahead
):
    model = Watched(weights=str(weights_file))
    found = predict(model, fasta)
    rows = [batch.rows.tolist() for batch in found]
    assert [row for batch in rows for row in batch] == list(range(len(LENGTHS)))
    assert len(rows) > 3
    expected = [("launch", rows[0])]
    for this, following in zip(rows, [*rows[1:], None], strict=True):
        expected += [("launch", following)] if following else []
        expected += [("collect", this)]
    assert model.events == expected


def test_vectors_are_those_without_looking_ahead(weights_file, fasta, request):
    plain = torch.cat([b.vectors for b in predict(Watched(weights=str(weights_file)), fasta)])
    request.getfixturevalue("look_ahead")
    model = Watched(weights=str(weights_file))
    ahead = torch.cat([b.vectors for b in predict(model, fasta)])
    assert model.events[1][0] == "launch"
    assert torch.equal(plain, ahead)


def test_other_batch_than_the_one_launched_ahead_is_launched_itself(weights_file, fasta):
    model = Watched(weights=str(weights_file), enable_fp16=False)
    predict(model, fasta)
    one, two, three = (
        pack(torch.tensor([i]).numpy(), [str(i)], [letters], model.tokenizer)
        for i, letters in enumerate([b"MKV", b"LLA", b"GGW"])
    )
    model.predict_step(one._replace(following=two))
    found = model.predict_step(three).vectors
    assert torch.equal(found, model.predict_step(three).vectors)
    assert not torch.equal(found, model.predict_step(two).vectors)


def test_unstable_batch_launched_ahead_is_found_in_its_own_step(
    poisoned_file, random_proteins, write_fasta, tmp_path, look_ahead
):
    proteins = random_proteins(LENGTHS)
    proteins[3] = proteins[3][:-1] + "W"
    model = Watched(weights=str(poisoned_file))
    with pytest.raises(NumericalInstabilityError) as caught:
        predict(model, write_fasta(tmp_path / "in.faa", proteins))
    assert caught.value.sequence_ids == ["p3"]
    collected = [rows for what, rows in model.events if what == "collect"]
    assert collected == [[0, 1], [2]]


class Failing(Watched):
    """Cannot launch the batch of some row, for a reason of the given kind."""

    row, error, times = 4, RuntimeError("a shape is wrong"), 99

    def launch(self, batch):
        launched = super().launch(batch)
        if self.row in batch.rows and self.times:
            self.times -= 1
            raise self.error
        return launched


def test_error_of_the_batch_ahead_is_raised_in_its_own_step_under_its_own_ids(
    weights_file, fasta, tmp_path, look_ahead
):
    model = Failing(weights=str(weights_file))
    with pytest.raises(RuntimeError, match="a shape is wrong"):
        predict(model, fasta, HDF5Writer(tmp_path / "out.h5"))
    [line] = (tmp_path / "out.h5.failures.jsonl").read_text().splitlines()
    assert json.loads(line)["sequence_ids"] == ["p3", "p4"]
    collected = [row for what, rows in model.events if what == "collect" for row in rows]
    assert collected == [0, 1, 2]
    assert model._ahead is None


def test_out_of_memory_ahead_ends_looking_ahead_and_nothing_else(
    weights_file, fasta, look_ahead, caplog
):
    plain = torch.cat([b.vectors for b in predict(Watched(weights=str(weights_file)), fasta)])
    model = Failing(weights=str(weights_file))
    model.error, model.times = torch.OutOfMemoryError("CUDA out of memory"), 1
    found = torch.cat([batch.vectors for batch in predict(model, fasta)])
    assert torch.equal(plain, found)
    assert caplog.text.count("Nothing is queued ahead from here on: the device has no room") == 1
    failed = model.events.index(("launch", [3, 4]))
    after = [what for what, _ in model.events[failed + 1 :]]
    assert after == ["collect", *["launch", "collect"] * (len(after) // 2)]


def test_run_that_ends_early_holds_no_batch(weights_file, fasta, look_ahead):
    model = Watched(weights=str(weights_file))
    predict(model, fasta, limit_predict_batches=2)
    assert [what for what, _ in model.events].count("launch") == 3
    assert model._ahead is None


def test_results_that_are_not_finite_alone_are_found():
    hidden = torch.full((4, 3), 1e38)
    assert Launched.send(None, [hidden], [hidden / 4]).wait()
    assert not Launched.send(None, [hidden], [hidden.sum(0)]).wait()
