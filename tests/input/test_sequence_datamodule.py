import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from virnucpro_pl.contracts import RowModel, Workspace
from virnucpro_pl.errors import InputError, UsageError
from virnucpro_pl.input import groups
from virnucpro_pl.input.packing import plan_packs
from virnucpro_pl.input.protein_tokens import ProteinTokenizer
from virnucpro_pl.input.sequence_datamodule import SequenceDataModule


class Model(RowModel):
    """Stands for an embedder."""

    columns = ("vectors",)
    data_needed = "SequenceDataModule"
    input_files = ()
    tokenizers = ()

    def __init__(self, tokenizer, spreads):
        self.tokenizers = (tokenizer,)
        self.spreads = spreads

    def width_of(self, column):
        return 2

    def provenance(self):
        return {}


class Output(Workspace):
    """Stands for a writer that has committed some rows already."""

    def __init__(self, folder, done):
        self.folder = folder
        self.done = np.array(done, np.bool_)

    def claim(self, inputs):
        return self.folder

    def finished_rows(self, count, trainer):
        assert count == len(self.done)
        return self.done


def modules(path, world, *, callbacks=(), tokenizer=None, spreads=True, **options):
    """A data module of each rank after `prepare_data` and `setup`; no process, no Trainer."""
    made = []
    for rank in range(world):
        data = SequenceDataModule(path, **{"num_workers": 0, **options})
        first = made[0] if made else data
        data.trainer = SimpleNamespace(
            global_rank=rank,
            world_size=world,
            is_global_zero=rank == 0,
            callbacks=list(callbacks),
            lightning_module=Model(tokenizer or ProteinTokenizer(), spreads),
            strategy=SimpleNamespace(
                broadcast=lambda value, first=first: first.fault or first._folder,
                root_device=torch.device("cpu"),
            ),
        )
        if rank == 0:
            data.prepare_data()
        made.append(data)
    for data in made:
        data.setup("predict")
    return made


def batches(made):
    """The batches of each rank."""
    found = [list(data.predict_dataloader()) for data in made]
    made[0].teardown("predict")
    return found


def sequences(lengths):
    """Proteins that differ, where they are long enough, so that they tell their row."""
    letters = "ACDEFGHIKLMNPQRSTVWY"
    return [
        "".join(letters[(row // 20**place + place) % 20] for place in range(length))
        for row, length in enumerate(lengths)
    ]


def write(path, proteins):
    path.write_text("".join(f">id{row} x\n{protein}\n" for row, protein in enumerate(proteins)))
    return path


def check_rows(found, proteins, rows):
    """Each of these rows once, with its own id, and the length and tokens of its sequence."""
    seen = []
    for batch in found:
        starts = batch.cu_seqlens.tolist()
        assert batch.size == len(batch.lengths) == len(starts) - 1
        places = range(batch.size) if batch.spread is None else batch.spread.tolist()
        for name, row, i in zip(batch.ids, batch.rows.tolist(), places, strict=True):
            expected, _ = ProteinTokenizer().encode([proteins[row].encode()])
            assert batch.tokens[starts[i] : starts[i + 1]].tolist() == expected.tolist()
            assert name == f"id{row}"
            assert batch.lengths[i] == len(proteins[row])
            seen.append(row)
    assert sorted(seen) == list(rows)


quick = settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
some_lengths = st.lists(st.one_of(st.integers(1, 8), st.integers(1, 90)), min_size=1, max_size=40)


@quick
@given(lengths=some_lengths, budget=st.integers(1, 120), world=st.integers(1, 9))
def test_rows_each_on_one_rank_once_within_the_budget(tmp_path, lengths, budget, world):
    proteins = sequences(lengths)
    made = modules(write(tmp_path / "x.faa", proteins), world, tokens_per_batch=budget)
    found = batches(made)
    check_rows([batch for rank in found for batch in rank], proteins, range(len(proteins)))
    for batch in (batch for rank in found for batch in rank):
        assert len(batch.tokens) <= budget or len(batch.rows) == 1
    counts = [len(rank) for rank in found]
    assert max(counts) - min(counts) <= 1


@quick
@given(lengths=some_lengths, budget=st.integers(1, 120), world=st.integers(1, 4), data=st.data())
def test_finished_rows_left_out_of_the_same_packs(tmp_path, lengths, budget, world, data):
    proteins = sequences(lengths)
    path = write(tmp_path / "x.faa", proteins)
    done = data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)))
    output = Output(tmp_path, done)
    made = modules(path, world, callbacks=[output], tokens_per_batch=budget)
    found = [batch for rank in batches(made) for batch in rank]
    check_rows(found, proteins, np.flatnonzero(~output.done))
    plan = plan_packs([len(protein) for protein in proteins], budget)
    left = [[row for row in pack if not done[row]] for pack in plan]
    assert sorted(batch.rows.tolist() for batch in found) == [rows for rows in left if rows]


@quick
@given(lengths=some_lengths, budget=st.integers(1, 60), longest=st.integers(1, 30))
def test_records_cut_to_max_length_planned_and_laid_as_cut(tmp_path, lengths, budget, longest):
    proteins = sequences(lengths)
    path = write(tmp_path / "x.faa", proteins)
    options = {"tokens_per_batch": budget, "max_length": longest}
    made = modules(path, 2, **options)
    found = [batch for rank in batches(made) for batch in rank]
    cut = [protein[:longest] for protein in proteins]
    check_rows(found, cut, range(len(proteins)))
    plan = plan_packs([len(protein) for protein in cut], budget)
    assert sorted(batch.rows.tolist() for batch in found) == [list(pack) for pack in plan]


class Guesser(ProteinTokenizer):
    """Estimates that a record has one token, so that packs must be cut by real counts."""

    def estimate(self, lengths):
        return np.ones_like(lengths)


@quick
@given(lengths=some_lengths, budget=st.integers(3, 60), world=st.integers(1, 3))
def test_packs_estimated_too_low_cut_again_and_complete(tmp_path, lengths, budget, world):
    proteins = sequences(lengths)
    path = write(tmp_path / "x.faa", proteins)
    made = modules(path, world, tokenizer=Guesser(), tokens_per_batch=budget)
    found = [batch for rank in batches(made) for batch in rank]
    check_rows(found, proteins, range(len(proteins)))
    assert all(len(batch.tokens) <= budget or len(batch.rows) == 1 for batch in found)


# Rows with equal sequences ------------------------------------------------------------------------


@quick
@given(
    chosen=st.lists(st.integers(0, 11), min_size=1, max_size=50),
    budget=st.integers(1, 80),
    world=st.integers(1, 3),
    longest=st.one_of(st.none(), st.integers(1, 8)),
    guess=st.booleans(),
    one_hash=st.booleans(),
    data=st.data(),
)
def test_equal_sequences_are_in_one_batch_once(
    tmp_path, chosen, budget, world, longest, guess, one_hash, data
):
    different = sequences([7 * row % 12 + 1 for row in range(12)])
    proteins = [different[number] for number in chosen]
    path = write(tmp_path / "x.faa", proteins)
    done = {number for number in set(chosen) if data.draw(st.booleans())}  # whole groups are
    output = Output(tmp_path, [number in done for number in chosen])
    with pytest.MonkeyPatch.context() as patch:
        if one_hash:
            patch.setattr(groups, "hash", lambda s: 0, raising=False)
        made = modules(
            path,
            world,
            callbacks=[output],
            tokens_per_batch=budget,
            max_length=longest,
            tokenizer=Guesser() if guess else None,
        )
        found = [batch for rank in batches(made) for batch in rank]
    cut = [protein[:longest] for protein in proteins]
    check_rows(found, cut, np.flatnonzero(~output.done))
    holding = [sequence for batch in found for sequence in {cut[row] for row in batch.rows}]
    left = {sequence for row, sequence in enumerate(cut) if not output.done[row]}
    assert sorted(holding) == sorted(left)
    for batch in found:
        assert batch.size == len({cut[row] for row in batch.rows})
        assert len(batch.tokens) <= budget or batch.size == 1
        assert batch.rows.tolist() == sorted(batch.rows.tolist())


def test_equal_sequences_are_counted(tmp_path):
    path = write(tmp_path / "x.faa", ["MKV", "MK", "mkv", "MKVL"])
    [data] = modules(path, 1)
    assert data.distinct == {"records": {"count": 3, "share": 0.75}}
    [data] = modules(path, 1, max_length=2)
    assert data.distinct == {"records": {"count": 1, "share": 0.25}}
    output = Output(tmp_path, [False] * 4)
    [data] = modules(path, 1, callbacks=[output])
    data.predict_dataloader()
    assert data.tokens_left(ProteinTokenizer()) == 5 + 4 + 6
    assert data.wholly_done(np.array([True, True, False, True])).tolist() == [0, 1, 0, 1]


def test_model_that_does_not_spread_gets_a_sequence_for_each_row(tmp_path):
    path = write(tmp_path / "x.faa", ["MKV", "MK", "MKV"])
    made = modules(path, 1, spreads=False)
    assert made[0].distinct is None
    [[batch]] = batches(made)
    assert batch.spread is None
    assert batch.rows.tolist() == [0, 1, 2]
    assert batch.cu_seqlens.tolist() == [0, 5, 9, 14]


def test_group_larger_than_a_batch_is_cut_and_stays_on_one_rank(tmp_path, monkeypatch):
    monkeypatch.setattr(groups, "COPIES", 4)
    proteins = ["MKV"] * 12 + ["MK", "MKVL", "MK", "MKL"]
    made = modules(write(tmp_path / "x.faa", proteins), 2)
    found = batches(made)
    check_rows([batch for rank in found for batch in rank], proteins, range(16))
    rows = [[batch.rows.tolist() for batch in rank] for rank in found]
    assert rows == [[[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]], [[12, 13, 14, 15]]]


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize(("count", "world"), [(1, 2), (37, 1), (37, 3)])
def test_rows_complete_and_in_order_for_any_workers(tmp_path, workers, count, world):
    proteins = sequences([row % 11 + 1 for row in range(count)])
    path = write(tmp_path / "x.faa", proteins)
    found = batches(modules(path, world, tokens_per_batch=30, num_workers=workers))
    check_rows([batch for rank in found for batch in rank], proteins, range(count))
    for rank in found:
        order = [batch.rows[0].item() for batch in rank]
        assert order == sorted(order)


def test_rows_of_several_files_know_their_file(tmp_path):
    (tmp_path / "a.faa").write_text(">a\nMK\n>b\nMKV\n")
    (tmp_path / "b\t.faa").write_text(">c\nM\n")
    (tmp_path / "c.faa").write_text(">d\nMKL\n>e\nMKLL\n>f\nM\n")
    paths = [tmp_path / name for name in ("a.faa", "b\t.faa", "c.faa")]
    for least, ids, files, counts in (
        (0, "abcdef", [0, 0, 1, 2, 2, 2], [2, 1, 3]),
        (3, "bde", [0, 2, 2], [1, 0, 2]),
    ):
        for data in modules(paths, 2, min_length=least):
            assert data.store.ids(np.arange(len(ids))) == list(ids)
            assert data.inputs.file.dtype == np.int32
            assert data.inputs.file.tolist() == files
            names = [str(tmp_path / name) for name in ("a.faa", r"b\t.faa", "c.faa")]
            assert data.inputs.names == names
            assert [file["records"] for file in data.inputs.counts] == counts
            assert data.input_files == paths
    one = modules(paths[0], 1)[0]
    assert one.inputs is None


def test_kept_rows_are_those_of_the_records_that_are_long_enough(tmp_path):
    proteins = sequences([3, 50, 7, 2, 20])
    path = write(tmp_path / "x.faa", proteins)
    made = modules(path, 2, min_length=7, tokens_per_batch=30)
    found = [batch for rank in batches(made) for batch in rank]
    kept = {(row, made[0].store.ids(np.array([row]))[0]) for row in range(3)}
    assert kept == {(0, "id1"), (1, "id2"), (2, "id4")}
    for batch in found:
        for row, name, length in zip(batch.rows.tolist(), batch.ids, batch.lengths, strict=True):
            assert (row, name) in kept
            assert length == len(proteins[int(name[2:])])
    assert sorted(row for batch in found for row in batch.rows.tolist()) == [0, 1, 2]
    assert made[0].store.lengths.tolist() == [50, 7, 20]


def test_ranks_beyond_the_packs_get_nothing(tmp_path):
    proteins = sequences([3, 3])
    path = write(tmp_path / "x.faa", proteins)
    for workers in (0, 1):
        found = batches(modules(path, 5, tokens_per_batch=5, num_workers=workers))
        assert [len(rank) for rank in found] == [1, 1, 0, 0, 0]


def test_max_length_warns_with_a_count(tmp_path, caplog):
    path = write(tmp_path / "x.faa", sequences([3, 5, 4, 9]))
    with caplog.at_level(logging.WARNING):
        made = modules(path, 2, max_length=4)
    assert caplog.text.count("2 records are cut to 4 letters") == 1
    made[0].teardown("predict")


def test_bad_input_raised_on_every_rank(tmp_path):
    (tmp_path / "x.faa").write_text(">a\nM1\n")
    with pytest.raises(InputError, match=r"record 1 \(a\)"):
        modules(tmp_path / "x.faa", 1)
    data = SequenceDataModule(tmp_path / "x.faa")
    data.trainer = SimpleNamespace(
        strategy=SimpleNamespace(broadcast=lambda value: InputError("of rank 0"))
    )
    with pytest.raises(InputError, match="of rank 0"):
        data.setup("predict")


@pytest.mark.parametrize(
    "options",
    [{"tokens_per_batch": 0}, {"num_workers": -1}, {"max_length": 0}, {"min_length": -1}],
)
def test_option_out_of_range_usage_error(options):
    with pytest.raises(UsageError, match="at least"):
        SequenceDataModule("x.faa", **options)


@pytest.mark.parametrize(("device", "budget"), [("cpu", 2_048), ("cuda", 16_384)])
def test_packs_by_default_are_small_on_a_cpu(tmp_path, device, budget):
    path = write(tmp_path / "x.faa", sequences([300] * 120))
    made = modules(path, 2)
    for data in made:
        data.trainer.strategy.root_device = torch.device(device)
    assert [data.tokens_per_batch for data in made] == [budget] * 2
    packs = made[0].plan()
    assert packs == made[1].plan() == plan_packs([300] * 120, budget)
    made[0].teardown("predict")


def test_tokens_left_are_those_of_rows_not_committed(tmp_path):
    path = write(tmp_path / "x.faa", sequences([3, 50, 7]))
    made = modules(path, 1, callbacks=[Output(tmp_path, [True, False, False])], max_length=10)
    made[0].predict_dataloader()
    assert made[0].tokens_left(ProteinTokenizer()) == 12 + 9


def test_data_module_without_a_trainer_usage_error(tmp_path):
    with pytest.raises(UsageError, match="inside Trainer"):
        SequenceDataModule(tmp_path / "x.faa").setup("predict")


def test_scratch_folder_removed_after_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made = modules(write(tmp_path / "x.faa", sequences([3, 4])), 1)
    assert len(list(tmp_path.iterdir())) == 2
    made[0].on_exception(RuntimeError())
    assert [file.name for file in tmp_path.iterdir()] == ["x.faa"]


# Within Lightning ---------------------------------------------------------------------------------


@pytest.mark.parametrize("distributed", [True, False])
def test_trainer_predict_returns_every_row_once(tmp_path, distributed):
    from lightning.pytorch import Trainer

    from virnucpro_pl import ESM2Embedder

    proteins = sequences([7, 1, 30, 12, 80, 3, 3, 5, 21])
    path = write(tmp_path / "x.faa", proteins)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=distributed,
    )
    model = ESM2Embedder("esm2_t6_8M_UR50D", weights="random", enable_fp16=False)
    found = trainer.predict(model, SequenceDataModule(path, tokens_per_batch=40, num_workers=1))
    assert torch.cat([part.rows for part in found]).tolist() == list(range(9))
    vectors = torch.cat([part.vectors for part in found])
    assert vectors.shape == (9, 320)
    assert vectors.dtype == torch.float32
    assert vectors.isfinite().all()
    assert len({tuple(vector) for vector in vectors.tolist()}) == 9


RANKS = """
import json
from pathlib import Path
from lightning.pytorch import LightningModule, Trainer
from virnucpro_pl.input.sequence_datamodule import SequenceDataModule
from virnucpro_pl.input.protein_tokens import ProteinTokenizer

class Counter(LightningModule):
    tokenizer = ProteinTokenizer()
    def predict_step(self, batch, batch_idx=0):
        return batch.rows.tolist()

for distributed in (True, False):
    for count, workers in ((1, 0), (1, 2), (19, 2)):
        trainer = Trainer(
            accelerator="cpu", devices=2, strategy="ddp", use_distributed_sampler=distributed,
            logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        )
        data = SequenceDataModule(f"{count}.faa", tokens_per_batch=20, num_workers=workers)
        rows = sum(trainer.predict(Counter(), data) or [], [])
        name = f"rows-{distributed}-{count}-{workers}-{trainer.global_rank}.json"
        Path(name).write_text(json.dumps(rows))
"""


@pytest.mark.slow
def test_two_ranks_in_lightning_share_the_rows_whatever_its_sampler(tmp_path, start):
    for count in (1, 19):
        write(tmp_path / f"{count}.faa", sequences([row % 7 + 1 for row in range(count)]))
    (tmp_path / "ranks.py").write_text(RANKS)
    command = start(launcher=["ranks.py"])
    ended = command.wait(120)
    assert ended.code == 0, ended.log
    command.assert_nothing_left()
    found = {}
    for file in tmp_path.glob("rows-*.json"):
        case, _, _ = file.stem.rpartition("-")
        found.setdefault(case, []).append(json.loads(file.read_text()))
    assert len(found) == 6
    for case, ranks in found.items():
        count = int(case.split("-")[2])
        assert len(ranks) == 2
        assert sorted(ranks[0] + ranks[1]) == list(range(count)), case
        assert count == 1 or all(ranks), case
