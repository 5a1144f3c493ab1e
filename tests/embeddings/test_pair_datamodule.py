"""Two embedding files joined by id, never by position, and what does not match."""

import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virnucpro_pl.embeddings import id_table
from virnucpro_pl.embeddings.pair_datamodule import EmbeddingPairDataModule, Pairs, PairStore
from virnucpro_pl.errors import InputError

COUNT = 300


@pytest.fixture(scope="module")
def files(write_embeddings, tmp_path_factory):
    """Write both files: names, 2 and 3 numbers wide, the second in any order; the first's ids."""

    def write(ids, other_ids=None, order=None, lengths=(None, None), **attributes):
        folder = tmp_path_factory.mktemp("pairs")
        order = np.arange(len(ids)) if order is None else order
        number = np.arange(len(ids), dtype=np.float32)[:, None]
        dna, protein = number + np.arange(2) / 4, -number + np.arange(3) / 4
        others = ids if other_ids is None else other_ids
        shuffled = [others[i] for i in order]
        residues = None if lengths[1] is None else np.asarray(lengths[1])[order]
        return (
            write_embeddings(folder / "dna.h5", ids, dna, lengths[0], **attributes),
            write_embeddings(folder / "esm.h5", shuffled, protein[order], residues),
        )

    return write


def opened(paths, folder):
    data = EmbeddingPairDataModule(*paths)
    data.read(folder)
    data.open(folder)
    return data


@pytest.mark.parametrize("block", [7, 65_536])
@pytest.mark.parametrize("seed", [None, 0])
def test_features_are_joined_by_id_in_the_order_of_the_dna(
    files, tmp_path, monkeypatch, seed, block
):
    monkeypatch.setattr(id_table, "_ID_BLOCK", block)
    ids = [f"c_chunk_{i}F1" for i in range(COUNT)]
    order = None if seed is None else np.random.default_rng(seed).permutation(COUNT)
    data = opened(files(ids, order=order), tmp_path)
    assert data.width == 5
    packs = [np.arange(pack.start, pack.stop) for pack in data.plan()]
    assert [len(rows) for rows in packs] == [256, 44]
    served = pickle.loads(pickle.dumps(data.batches(packs)))
    assert isinstance(served, Pairs)
    for rows, [batch] in zip(packs, map(served.__getitem__, range(2)), strict=True):
        assert batch.rows.tolist() == rows.tolist()
        assert batch.ids == tuple(ids[i] for i in rows)
        offsets = [0, 0.25, 0, 0.25, 0.5]
        signs = np.array([1, 1, -1, -1, -1])
        assert np.array_equal(batch.features.numpy(), rows[:, None] * signs + offsets)
        assert len(batch.tokens) == len(rows)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40).flatmap(lambda n: st.permutations(range(n))))
def test_any_order_of_the_second_file_is_undone(files, tmp_path_factory, order):
    folder = tmp_path_factory.mktemp("join")
    paths = files([f"s{i}" for i in range(len(order))], order=np.array(order))
    store = opened(paths, folder).store
    features = store.features(np.arange(len(store)))
    assert np.array_equal(features[:, 0], -features[:, 2])


def test_pair_store_without_a_row_has_its_width(files, tmp_path):
    store = opened(files([]), tmp_path).store
    assert (len(store), store.width) == (0, 5)


@pytest.mark.parametrize(
    ("ids", "others", "message"),
    [
        (["a", "b", "a"], ["a", "b", "c"], r"dna\.h5 has 1 id\(s\) more than once: a"),
        (["a", "b", "c"], ["c", "b", "c"], r"esm\.h5 has 1 id\(s\) more than once: c"),
        (["a", "b", "c"], ["a", "x", "c"], r"dna\.h5 lacks 1 id\(s\) of the other file: x"),
        (["a", "b"], ["a", "b"], None),
    ],
)
def test_files_that_do_not_match_raise_and_name_the_ids(files, tmp_path, ids, others, message):
    paths = files(ids, others)
    if message is None:
        assert len(opened(paths, tmp_path).store) == 2
        return
    with pytest.raises(InputError, match=message):
        opened(paths, tmp_path)


def test_more_ids_in_one_file_raise(files, write_embeddings, tmp_path):
    dna, esm = files(["a", "b"])
    write_embeddings(esm, ["b", "c", "a"], np.ones((3, 3)))
    with pytest.raises(InputError, match=r"dna\.h5 lacks 1 id\(s\) of the other file: c"):
        opened((dna, esm), tmp_path)


def test_different_ids_with_one_hash_raise(files, tmp_path, monkeypatch):
    paths = files(["a", "b"], ["a", "x"])
    write = id_table.write_ids

    def collide(file, folder, name):
        return write(file, folder, name)[0], np.array([1, 2])

    monkeypatch.setattr(id_table, "write_ids", collide)
    with pytest.raises(InputError, match="do not hold the same ids"):
        opened(paths, tmp_path)


def test_swapped_files_raise(files, tmp_path):
    dna, esm = files(["a"], model="esm2_t6_8M_UR50D")
    with pytest.raises(InputError, match=r"dna\.h5 holds embeddings of esm2_t6_8M_UR50D"):
        opened((dna, esm), tmp_path)
    dna, esm = files(["a"], model="DNABERT-S-tiny")
    with pytest.raises(
        InputError, match=r"dna\.h5 holds embeddings of DNABERT-S-tiny, not of ESM-2"
    ):
        opened((esm, dna), tmp_path)


@pytest.mark.parametrize(
    ("bases", "residues", "bad"),
    [([4, 6], [1, 2], None), ([3, 8], [1, 2], "b"), ([2, 7], [1, 2], "a"), ([8, 4], [2, 1], "a")],
)
def test_lengths_that_are_no_orfs_raise(files, tmp_path, bases, residues, bad):
    paths = files(["a", "b"], order=np.array([1, 0]), lengths=(bases, residues))
    if bad is None:
        opened(paths, tmp_path)
        return
    with pytest.raises(InputError, match=f"not of the same ORFs: 1 have .*: {bad}"):
        opened(paths, tmp_path)


@pytest.mark.parametrize(
    ("lengths", "known"),
    [((None, None), None), ((300, None), 300), ((None, 300), 300), ((300, 300), 300)],
)
def test_chunk_length_is_that_of_the_files_that_know(files, tmp_path, lengths, known):
    paths = files(["a", "b"])
    set_chunk_lengths(paths, lengths)
    assert opened(paths, tmp_path).chunk_length == known


def test_files_of_other_chunks_raise(files, tmp_path):
    paths = files(["a", "b"])
    set_chunk_lengths(paths, (300, 500))
    with pytest.raises(InputError, match=r"dna\.h5 is of chunks of 300 bases, .*esm\.h5 of .* 500"):
        opened(paths, tmp_path)
    set_chunk_lengths(paths, ("x", 500))
    with pytest.raises(InputError, match=r"dna\.h5: its chunk_length is no whole number, but 'x'"):
        opened(paths, tmp_path)


def set_chunk_lengths(paths, lengths):
    for path, length in zip(paths, lengths, strict=True):
        if length is not None:
            with h5py.File(path, "r+") as file:
                file.attrs["chunk_length"] = length


def test_truncated_embeddings_raise(files, tmp_path):
    paths = files(["a", "b"], lengths=([3, 6], [1, 2]))
    with h5py.File(paths[1], "r+") as file:
        file["lengths"].attrs["truncated_records"] = 2
    with pytest.raises(InputError, match=r"esm\.h5: 2 records were cut"):
        opened(paths, tmp_path)


def test_proteins_beyond_the_pooled_residues_are_mentioned(files, tmp_path, caplog):
    opened(files(["aF1"], lengths=([3600], [1200])), tmp_path)
    assert "1 proteins are longer than 1024 residues" in caplog.text
    assert "do not end in a frame" not in caplog.text


def test_ids_without_a_frame_are_mentioned(files, tmp_path, caplog):
    opened(files(["contig_1", "xR3"]), tmp_path)
    assert "ids such as contig_1 do not end in a frame" in caplog.text


def test_input_hash_depends_on_both_files(files, tmp_path):
    hashes = set()
    for ids in (["a", "b"], ["a", "c"]):
        data = opened(files(ids), tmp_path)
        hashes.add(data.provenance()["input_sha256"])
    assert len(hashes) == 2


def test_provenance_tells_the_models_where_the_files_do(files, tmp_path):
    weights = "random:DNABERT-S-tiny:0"
    paths = files(["aF1"], model="DNABERT-S-tiny", weights_sha256=weights, layer=2)
    told = opened(paths, tmp_path).provenance()
    del told["input_sha256"], told["max_length"]
    assert told == {
        "model_dnabert_s": "DNABERT-S-tiny",
        "weights_sha256_dnabert_s": weights,
        "layer_dnabert_s": "2",
    }


def test_pair_store_is_sent_by_its_paths(files, tmp_path):
    store = opened(files([f"id{i}" for i in range(1000)]), tmp_path).store
    sent = pickle.dumps(store)
    assert len(sent) < 600
    assert isinstance(pickle.loads(sent), PairStore)
    assert Path(pickle.loads(sent).esm2.path).name == "esm.h5"
