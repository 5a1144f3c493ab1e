"""`load_embeddings`: vectors by id, by row, by slice; only of files that are complete."""

import h5py
import numpy as np
import pytest

import virnucpro_pl
from virnucpro_pl.embeddings import embedding_file
from virnucpro_pl.errors import InputError, UsageError

VECTORS = np.arange(15, dtype=np.float32).reshape(5, 3)
IDS = ["a_chunk_1F1", "sp|x/y", "ü", "%2F", "."]


@pytest.fixture
def path(write_embeddings, tmp_path):
    return write_embeddings(tmp_path / "e.h5", IDS, VECTORS, [9, 8, 7, 6, 5], model="m", layer=2)


def test_vectors_by_id_row_slice_and_list(path):
    with virnucpro_pl.load_embeddings(str(path)) as embeddings:
        assert len(embeddings) == 5
        assert embeddings.width == 3
        for row, name in enumerate(IDS):
            assert np.array_equal(embeddings[name], VECTORS[row])
        assert np.array_equal(embeddings[1], VECTORS[1])
        assert np.array_equal(embeddings[-1], VECTORS[-1])
        assert np.array_equal(embeddings[1:4], VECTORS[1:4])
        assert np.array_equal(embeddings[::-2], VECTORS[::-2])
        assert embeddings[3:3].shape == (0, 3)
        assert np.array_equal(embeddings[["ü", "a_chunk_1F1", "ü"]], VECTORS[[2, 0, 2]])
        assert np.array_equal(embeddings[[4, 1]], VECTORS[[4, 1]])
        assert embeddings[[]].shape == (0, 3)
        assert embeddings["ü"].dtype == np.float32


def test_ids_lengths_and_attributes(path):
    embeddings = virnucpro_pl.load_embeddings(path)
    assert embeddings.ids == list(embeddings) == IDS
    assert embeddings.lengths.tolist() == [9, 8, 7, 6, 5]
    assert embeddings.attributes["model"] == "m"
    assert embeddings.attributes["layer"] == 2
    assert "ü" in embeddings
    assert "u" not in embeddings
    assert 1 not in embeddings
    assert embeddings.failed.tolist() == []
    embeddings.close()


def test_file_without_lengths_tells_none(write_embeddings, tmp_path):
    assert (
        virnucpro_pl.load_embeddings(write_embeddings(tmp_path / "e.h5", "ab", VECTORS[:2])).lengths
        is None
    )


def test_absent_id_or_row_raises_and_names_file(path):
    embeddings = virnucpro_pl.load_embeddings(path)
    with pytest.raises(KeyError, match=r"e\.h5 has no id 'absent'"):
        embeddings["absent"]
    with pytest.raises(IndexError, match=r"e\.h5 has 5 rows, not 5"):
        embeddings[5]
    with pytest.raises(IndexError, match="not -6"):
        embeddings[-6]


def test_id_that_stands_twice_raises(write_embeddings, tmp_path):
    embeddings = virnucpro_pl.load_embeddings(
        write_embeddings(tmp_path / "e.h5", "aba", VECTORS[:3])
    )
    assert embeddings["b"].tolist() == [3, 4, 5]
    with pytest.raises(KeyError, match="2 rows of id 'a'"):
        embeddings["a"]


def test_ids_of_one_hash_are_told_apart(path, monkeypatch):
    monkeypatch.setattr(embedding_file, "hash", lambda name: 7, raising=False)
    embeddings = virnucpro_pl.load_embeddings(path)
    for row, name in enumerate(IDS):
        assert np.array_equal(embeddings[name], VECTORS[row])
    assert "absent" not in embeddings
    with pytest.raises(KeyError, match="no id 'absent'"):
        embeddings["absent"]


@pytest.mark.parametrize("attribute", ["complete", "format"])
def test_file_that_is_not_complete_is_refused(path, attribute):
    with h5py.File(path, "r+") as file:
        del file.attrs[attribute]
    with pytest.raises(InputError, match=r"e\.h5 (was never completed|is no embedding file)"):
        virnucpro_pl.load_embeddings(path)


def test_missing_file_is_bad_usage(tmp_path):
    with pytest.raises(UsageError, match="no such embedding file"):
        virnucpro_pl.load_embeddings(tmp_path / "absent.h5")


@pytest.mark.parametrize("lengths", [np.ones(4, np.int32), np.ones(5), np.ones((5, 1), np.int32)])
def test_strange_lengths_raise(path, lengths):
    with h5py.File(path, "r+") as file:
        del file["lengths"]
        file["lengths"] = lengths
    with pytest.raises(InputError, match=r"e\.h5: /lengths"):
        virnucpro_pl.load_embeddings(path).lengths  # noqa: B018


@pytest.mark.parametrize("spread", [0, 1, 4, 100])
def test_rows_are_the_same_whether_picked_or_read_on(path, monkeypatch, spread):
    monkeypatch.setattr(embedding_file, "_SPREAD", spread)
    embeddings = virnucpro_pl.load_embeddings(path)
    for rows in ([0, 4], [4, 0], [1, 2, 3], [3, 3, 0], [2], [0, 2, 1, 3]):
        assert np.array_equal(embeddings.rows(np.array(rows)), VECTORS[rows])


def test_row_blocks_hold_every_row_in_order(path, monkeypatch):
    monkeypatch.setattr(embedding_file, "_ROW_BLOCK", 2)
    monkeypatch.setattr(embedding_file, "_ID_BLOCK", 3)
    blocks = list(virnucpro_pl.load_embeddings(path).row_blocks())
    assert [len(names) for names, _ in blocks] == [2, 1, 2]
    assert [name for names, _ in blocks for name in names] == IDS
    assert np.array_equal(np.concatenate([vectors for _, vectors in blocks]), VECTORS)
