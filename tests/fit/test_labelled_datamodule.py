"""Two sets of embedding files as labelled rows, split by record, and what is refused."""

import pickle
import resource

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from virnucpro_pl.errors import InputError, UsageError
from virnucpro_pl.fit.labelled_datamodule import EmbeddingPair, LabelledPairDataModule
from virnucpro_pl.fit.labelled_rows import Batches
from virnucpro_pl.fit.splits import split_records
from virnucpro_pl.input.orfs import MEAN_OF_RESIDUES, POOLING

DNA, PROTEIN = 2, 3


def ids_of(name, chunks):
    """Ids of the ORFs of records with so many chunks, in two frames."""
    return [
        f"{name}{r}_chunk_{c + 1}{frame}"
        for r, count in enumerate(chunks)
        for c in range(count)
        for frame in ("F1", "R3")
    ]


@pytest.fixture
def write_set(write_embeddings, tmp_path):
    """Write both files of a set, the proteins in reverse; a row's numbers start with `first`."""

    def write(name, ids, first=0.0, widths=(DNA, PROTEIN), edit=None, **attributes):
        rows = first + np.arange(len(ids), dtype=np.float32)[:, None]
        vectors = [rows + np.arange(width) / 8 for width in widths]
        if edit is not None:
            edit(*vectors)
        dna = write_embeddings(tmp_path / f"{name}_d.h5", ids, vectors[0], **attributes)
        esm = write_embeddings(tmp_path / f"{name}_e.h5", ids[::-1], vectors[1][::-1])
        return EmbeddingPair(dna, esm)

    return write


@pytest.fixture
def both_sets(write_set):
    viral = write_set("v", ids_of("v", [3, 1, 2, 1]), 100.0)
    return viral, write_set("o", ids_of("o", [1, 2, 1, 1, 1]))


def opened(viral, other, **options):
    torch.manual_seed(0)
    data = LabelledPairDataModule(viral, other, **options)
    data.setup("fit")
    return data


@pytest.mark.parametrize("memory_gb", [0.0, 1.0])
def test_rows_have_their_features_and_labels(both_sets, memory_gb):
    data = opened(*both_sets, memory_gb=memory_gb)
    assert (len(data.rows), data.width) == (12 + 14, DNA + PROTEIN)
    served = pickle.loads(pickle.dumps(data.rows)) if memory_gb == 0 else data.rows
    features, labels = served[[25, 0, 12, 11, 3]]
    assert labels.tolist() == [1, 0, 1, 0, 0]
    first = np.array([113, 0, 100, 11, 3], np.float32)[:, None]
    assert np.array_equal(features, first + np.array([0, 1, 0, 1, 2]) / 8)


@pytest.mark.parametrize("test_fraction", [0.0, 0.3])
def test_no_record_is_on_two_sides(both_sets, test_fraction, caplog):
    data = opened(*both_sets, validation_fraction=0.3, test_fraction=test_fraction)
    stores, border = data.rows.stores, data.rows.border

    def records(rows):
        names = [
            stores[int(row >= border)].ids(np.array([row - border * (row >= border)]))[0]
            for row in rows
        ]
        return {name.partition("_chunk_")[0] for name in names}

    sides = [records(rows) for rows in data.split[:3]]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 9
    for side in sides[: 3 if test_fraction else 2]:
        assert {name[0] for name in side} == {"v", "o"}
    assert bool(sides[2]) == bool(test_fraction)
    assert sum(map(len, data.split[:3])) == 26


def test_split_depends_on_the_seed_alone(both_sets):
    first, same = opened(*both_sets), opened(*both_sets)
    assert all(np.array_equal(a, b) for a, b in zip(first.split[:3], same.split[:3], strict=True))
    others = []
    for seed in range(1, 5):
        torch.manual_seed(seed)
        data = LabelledPairDataModule(*both_sets)
        data.setup("fit")
        others.append(data.split.validation.tolist())
    assert any(rows != first.split.validation.tolist() for rows in others)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 1), min_size=6, max_size=40),
    st.floats(0.01, 0.6),
    st.floats(0, 0.39),
    st.integers(0, 9),
)
def test_split_any_rows_is_whole(labels, validation, test, seed):
    of_record = np.array([0, 0, 0, 1, 1, 1, *labels])  # at least three records of each class
    records = np.repeat(np.arange(len(of_record)), 2)
    usable = np.ones(len(records), np.bool_)
    split = split_records(of_record.repeat(2), records, usable, (validation, test), seed)
    assert sorted(np.concatenate(split[:3])) == list(range(len(records)))
    for part in split.counts.values():
        for count in part.values():
            assert count["records"] >= 1
            assert count["orfs"] == 2 * count["records"]


@pytest.mark.parametrize(
    ("count", "size", "shuffle", "sizes"),
    [
        (7, 3, True, [3, 3]),  # a last one of a single row has no batch normalisation
        (7, 3, False, [3, 3, 1]),
        (8, 3, True, [3, 3, 2]),
        (6, 3, True, [3, 3]),
        (2, 3, True, [2]),
    ],
)
def test_batches_hold_each_row_once(count, size, shuffle, sizes):
    sampler = Batches(np.arange(10, 10 + count), size, 1 if shuffle else None)
    drawn = list(sampler)
    assert drawn == list(sampler)
    assert [len(rows) for rows in drawn] == sizes
    assert len(sampler) == len(sizes)
    rows = [row for batch in drawn for row in batch]
    assert len(set(rows)) == sum(sizes)
    assert set(rows) <= set(range(10, 10 + count))


def test_full_disk_is_told(write_set):
    names = ids_of("v", [100]), ids_of("o", [100])
    sets = [write_set(ids[0][0], ids, widths=(100, 150)) for ids in names]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # a file may have no more
    try:
        with pytest.raises(UsageError, match=r"0\.0 GB of features .* cannot be written: .*TMPDIR"):
            opened(*sets, record_pattern="(.+)", memory_gb=0.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_features_beyond_memory_leave_no_file(both_sets, monkeypatch, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    data = opened(*both_sets, memory_gb=0.0)
    assert isinstance(data.rows.held, np.memmap)
    assert not list(scratch.rglob("features"))
    data.close()
    assert not list(scratch.iterdir())


def test_order_of_an_epoch_depends_on_seed_and_epoch_alone():
    def drawn(seed, epoch):
        sampler = Batches(np.arange(40), 8, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert drawn(1, 2) == drawn(1, 2)
    assert drawn(1, 2) != drawn(1, 3)
    assert drawn(1, 2) != drawn(2, 2)


def test_rows_not_finite_are_left_out_and_counted(write_set, caplog):
    def spoil(dna, esm):
        dna[1, 0] = np.nan
        esm[4, 2] = np.inf

    viral = write_set("v", ids_of("v", [3, 1, 2, 1]), edit=spoil)
    data = opened(viral, write_set("o", ids_of("o", [2, 2])))
    used = np.concatenate(data.split[:3])
    assert sorted(set(range(8 + 14)) - set(used)) == [8 + 1, 8 + 4]
    assert "virus: 2 of 14 ORFs are left out, since their embeddings are not finite" in caplog.text


def test_record_in_both_sets_raises(write_set):
    viral = write_set("v", ids_of("x", [1, 1]))
    other = write_set("o", [*ids_of("o", [1, 1]), "x1_chunk_9F2"])
    with pytest.raises(InputError, match=r"1 record\(s\) are in both sets, .*: x1\. Each"):
        opened(viral, other)


def test_ids_that_do_not_match_raise(write_set, write_embeddings):
    viral, other = (write_set(name, ids_of(name, [1, 1])) for name in "vo")
    write_embeddings(viral.esm2, ids_of("w", [1, 1]), np.ones((4, PROTEIN)))
    with pytest.raises(InputError, match=r"v_d\.h5 lacks 4 id\(s\) of the other file: w0_chunk"):
        opened(viral, other)


@pytest.mark.parametrize("widths", [(DNA + 1, PROTEIN), (DNA, PROTEIN + 1)])
def test_widths_that_differ_raise(write_set, widths):
    viral = write_set("v", ids_of("v", [1, 1]), widths=widths)
    with pytest.raises(InputError, match=r"vectors of \d numbers, .* of \d: both sets must be"):
        opened(viral, write_set("o", ids_of("o", [1, 1])))


def test_models_that_differ_raise_and_precisions_are_mentioned(write_set, caplog):
    told = {"model": "DNABERT-S", "layer": 12, "precision": "32-true"}
    viral = write_set("v", ids_of("v", [1, 1]), **told)
    other = write_set("o", ids_of("o", [1, 1]), **{**told, "layer": 11})
    with pytest.raises(InputError, match=r"differ in layer \(11 and 12\)"):
        opened(viral, other)
    opened(viral, write_set("o", ids_of("o", [1, 1]), **{**told, "precision": "16-mixed"}))
    assert "were computed in 16-mixed and 32-true" in caplog.text


ORIGIN = {"model": "m", "weights_sha256": "aa", "layer": 6, "pooling": MEAN_OF_RESIDUES}


def test_embedders_are_what_both_sets_tell(both_sets, caplog):
    caplog.set_level("INFO", "virnucpro_pl")
    set_attributes(both_sets[0].esm2, **ORIGIN, precision="32-true")
    set_attributes(both_sets[1].esm2, **ORIGIN, precision="16-mixed")
    set_attributes(both_sets[0].dnabert_s, model="DNABERT-S", layer=12)
    set_attributes(both_sets[1].dnabert_s, model_name="DNABERT-S")
    data = opened(*both_sets)
    known = {key: str(value) for key, value in ORIGIN.items()}
    assert data.embedders == {"dnabert_s": {"model": "DNABERT-S"}, "esm2": known}
    [line] = [line for line in caplog.messages if "will not know of its embeddings" in line]
    assert "layer of DNABERT-S" in line
    assert "ESM-2" not in line


@pytest.mark.parametrize("longest", [1024, 1025])
def test_both_kinds_of_pooling_are_one_up_to_1024_residues(both_sets, longest):
    for pair, pooling in zip(both_sets, (MEAN_OF_RESIDUES, POOLING), strict=True):
        set_attributes(pair.esm2, **{**ORIGIN, "pooling": pooling})
        for path, letters in ((pair.esm2, longest), (pair.dnabert_s, 3 * longest)):
            with h5py.File(path, "r+") as file:
                file["lengths"] = np.full(len(file["sequence_ids"]), letters)
    if longest > 1024:
        with pytest.raises(InputError, match=r"differ in pooling \(mean of the first 1024 "):
            opened(*both_sets)
    else:
        assert opened(*both_sets).embedders["esm2"]["pooling"] == POOLING


def test_kinds_of_pooling_without_lengths_differ(both_sets):
    set_attributes(both_sets[0].esm2, pooling=MEAN_OF_RESIDUES)
    set_attributes(both_sets[1].esm2, pooling=POOLING)
    with pytest.raises(InputError, match="differ in pooling"):
        opened(*both_sets)


@pytest.mark.parametrize("field", ["weights_sha256", "tokenizer_sha256"])
def test_weights_and_tokenizers_that_differ_raise(both_sets, field):
    for pair, value in zip(both_sets, ("aa", "bb"), strict=True):
        set_attributes(pair.dnabert_s, model="DNABERT-S", **{field: value})
    with pytest.raises(InputError, match=rf"differ in {field} \(bb and aa\)"):
        opened(*both_sets)


def set_attributes(path, **attributes):
    with h5py.File(path, "r+") as file:
        file.attrs.update(attributes)


@pytest.mark.parametrize(
    ("lengths", "known"),
    [((500, 500, 500, 500), 500), ((300, 300, None, 300), None), ((None,) * 4, None)],
)
def test_chunk_length_is_known_where_all_four_files_know_it(both_sets, caplog, lengths, known):
    caplog.set_level("INFO", "virnucpro_pl")
    unknown = set_lengths(both_sets, lengths)
    data = opened(*both_sets)
    assert data.chunk_length == known
    lines = [line for line in caplog.messages if "--data.length" in line]
    assert bool(lines) == bool(unknown)
    for path in unknown:
        assert str(path) in lines[0]


@pytest.mark.parametrize(
    "lengths", [(500, None, None, 300), (500, 300, None, None), (300, 300, 500, 500)]
)
def test_chunk_lengths_that_differ_raise_with_the_files(both_sets, lengths):
    set_lengths(both_sets, lengths)
    with pytest.raises(InputError, match=r"[vo]_[de]\.h5 is of chunks of \d00 bases, .*\.h5 of"):
        opened(*both_sets)


def set_lengths(both_sets, lengths):
    """Write these lengths of chunks to the four files; the files without one."""
    paths = [path for pair in both_sets for path in (pair.dnabert_s, pair.esm2)]
    for path, length in zip(paths, lengths, strict=True):
        if length is not None:
            with h5py.File(path, "r+") as file:
                file.attrs["chunk_length"] = length
    return [path for path, length in zip(paths, lengths, strict=True) if length is None]


def test_class_with_too_few_records_raises(write_set):
    viral, other = write_set("v", ids_of("v", [5])), write_set("o", ids_of("o", [1, 1]))
    with pytest.raises(UsageError, match=r"class virus has 1 record\(s\).* it needs at least 2"):
        opened(viral, other)
    with pytest.raises(UsageError, match=r"class others has 2 .*train, validation, test: .* 3"):
        opened(write_set("v", ids_of("v", [1] * 3)), other, test_fraction=0.1)


def test_ids_without_a_record_raise_unless_a_pattern_finds_it(write_set):
    viral, other = write_set("v", ["v_1", "v_2", "w_1"]), write_set("o", ["o_1", "p_1"])
    with pytest.raises(InputError, match=r"the id 'o_1' does not tell its record.*record_pattern"):
        opened(viral, other)
    data = opened(viral, other, record_pattern=r"(.+)_\d+")
    assert {n["virus"]["records"] for n in data.split.counts.values()} == {1}


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 1},
        {"num_workers": -1},
        {"memory_gb": -1.0},
        {"validation_fraction": 0.0},
        {"validation_fraction": 0.6, "test_fraction": 0.4},
        {"test_fraction": -0.1},
        {"record_pattern": "("},
        {"record_pattern": ".+"},
    ],
)
def test_bad_options_raise(both_sets, options):
    with pytest.raises(UsageError, match=next(iter(options))):
        LabelledPairDataModule(*both_sets, **options)


def test_close_removes_the_joins(both_sets):
    data = opened(*both_sets)
    folder = data.rows.stores[0].folder
    assert folder.is_dir()
    data.close()
    assert not folder.exists()
