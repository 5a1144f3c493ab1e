"""Figures of two files of vectors, worked out by hand, and what a wrong row does to them."""

import h5py
import numpy as np
import pytest

from virnucpro_pl.compare import joined, neighbours
from virnucpro_pl.compare.vectors import compare_vectors
from virnucpro_pl.embeddings import embedding_file, id_table
from virnucpro_pl.embeddings.embedding_file import EmbeddingFile
from virnucpro_pl.errors import UsageError

A = np.array([[1, 0], [0, 1], [2, 2]], np.float32)
B = np.array([[1, 0], [0, 2], [2, 1]], np.float32)


@pytest.fixture
def compared(write_embeddings, tmp_path):
    """Compare two sets of vectors."""

    def compare(a, b, ids_a=None, ids_b=None, lengths=(None, None), failed=(None, None)):
        files = []
        sides = zip("ab", (a, b), (ids_a, ids_b), lengths, failed, strict=True)
        for name, vectors, ids, some, lost in sides:
            ids = [f"s/{i}ü" for i in range(len(vectors))] if ids is None else ids
            path = write_embeddings(tmp_path / f"{name}.h5", ids, vectors, some)
            if lost is not None:
                with h5py.File(path, "r+") as file:
                    file["failed"] = lost
            files.append(EmbeddingFile(path))
        return compare_vectors(*files, tmp_path)

    return compare


def dominated(count=300, width=64):
    """Vectors that share one dominant channel, as those of ESM-2 do."""
    vectors = np.random.default_rng(0).normal(size=(count, width)).astype(np.float32)
    vectors[:, 7] += 50
    return vectors


def test_figures_are_those_worked_out_by_hand(compared):
    # The mean of A is (1, 1). Centred, A is (0, -1), (-1, 0), (1, 1); B (0, -1), (-1, 1), (1, 0).
    result = compared(A, B)
    assert list(result.classes) == ["all"]
    figures = result.classes["all"]
    assert figures.records == 3
    assert figures.cosine.min == pytest.approx(6 / 40**0.5)
    assert figures.cosine.median == pytest.approx(1)
    assert figures.centred_cosine.min == pytest.approx(0.5**0.5)
    assert figures.centred_cosine.percentile_1 == pytest.approx(0.5**0.5)
    assert figures.centred_cosine.median == pytest.approx(0.5**0.5)
    assert figures.largest_difference == 1
    assert figures.norm_ratio == pytest.approx((1 + 2 + (5 / 8) ** 0.5) / 3)
    assert figures.norm_ratio_range == pytest.approx(((5 / 8) ** 0.5, 2))
    assert figures.mean == pytest.approx((1, 1))
    assert figures.standard_deviation == pytest.approx(((2 / 3) ** 0.5, (2 / 3) ** 0.5))
    assert figures.outliers == (0, 0)
    assert {worst.id for worst in result.worst[:2]} == {"s/1ü", "s/2ü"}


def test_rows_are_joined_by_id_and_absent_ones_named(compared):
    result = compared(A, B[[2, 0, 1, 1]], ["x", "y", "z"], ["z", "x", "new", "other"])
    assert result.rows.total == (3, 4)
    assert result.rows.compared == 2
    assert result.rows.only[0] == (1, ["y"])
    assert result.rows.only[1] == (2, ["new", "other"])
    assert result.classes["all"].largest_difference == 1  # of z: (2, 2) and (2, 1)


def test_outliers_are_counted_against_a(compared):
    a = np.tile(np.array([[1, -1]], np.float32), (50, 1))
    b = a.copy()
    b[3, 0], b[4, 1] = 3.5, -2.5  # the mean of A is 0, its standard deviation 1
    assert compared(a, b).classes["all"].outliers == (0, 1)


def test_classes_are_by_length(compared):
    lengths = [1, 49, 50, 200, 201, 9999]
    a = np.arange(12, dtype=np.float32).reshape(6, 2)
    for known in ((lengths, None), (None, lengths), (lengths, lengths)):
        result = compared(a, a, lengths=known)
        counted = {name: of.records for name, of in result.classes.items()}
        assert counted == {"all": 6, "short": 2, "medium": 2, "long": 2}
        assert result.other_lengths == 0
    assert list(compared(a, a, lengths=([60] * 6, None)).classes) == ["all", "medium"]
    assert compared(a, a, lengths=(lengths, [1, 49, 50, 201, 201, 9998])).other_lengths == 2


def test_permuted_rows_pass_the_plain_cosine_and_fail_the_centred_one(compared):
    vectors = dominated()
    result = compared(vectors, np.roll(vectors, 1, axis=0))
    figures = result.classes["all"]
    assert figures.cosine.min > 0.9
    assert figures.centred_cosine.median < 0.2
    assert result.neighbours.same < 0.1
    assert result.neighbours.cosine_of_others == pytest.approx(figures.cosine.median, abs=0.01)


def test_rounded_vectors_stay_near(compared):
    vectors = dominated()
    result = compared(vectors, vectors.astype(np.float16).astype(np.float32))
    assert result.classes["all"].centred_cosine.min > 0.9999
    assert result.neighbours.same > 0.98


def test_neighbours_of_identical_records_are_interchangeable(compared):
    vectors = np.repeat(dominated(20), 3, axis=0)
    noise = np.random.default_rng(1).normal(scale=1e-6, size=vectors.shape)
    assert compared(vectors, vectors + noise.astype(np.float32)).neighbours.same == 1


def test_nan_rows_are_counted_apart(compared):
    a, b = dominated(6), dominated(6)
    a[1], b[2], b[3, 5] = np.nan, np.nan, np.inf
    result = compared(a, b, failed=([1], [2]))
    assert result.rows.compared == 3
    assert result.rows.failed == ((1, ["s/1ü"]), (1, ["s/2ü"]))
    assert result.rows.not_finite == ((0, []), (1, ["s/3ü"]))
    assert result.classes["all"].centred_cosine.min == pytest.approx(1)
    assert result.classes["all"].largest_difference == 0


@pytest.mark.parametrize("block", [1, 2, 7, 299])
def test_any_block_size_gives_the_same_figures(compared, monkeypatch, block):
    a = dominated()
    b = a + np.random.default_rng(2).normal(scale=0.01, size=a.shape).astype(np.float32)
    lengths = np.random.default_rng(3).integers(1, 400, len(a))
    order = np.random.default_rng(4).permutation(len(a))
    names = np.array([f"n{i}" for i in range(len(a))])

    def compare():
        return compared(a, b[order], names.tolist(), names[order].tolist(), (lengths, None))

    whole = compare()
    monkeypatch.setattr(joined, "_BLOCK", block)
    monkeypatch.setattr(neighbours, "_BLOCK", block)
    monkeypatch.setattr(id_table, "_ID_BLOCK", block)
    monkeypatch.setattr(embedding_file, "_ID_BLOCK", block)
    streamed = compare()
    assert streamed.rows == whole.rows
    assert streamed.worst[0].id == whole.worst[0].id
    assert streamed.neighbours.same == whole.neighbours.same
    for name, figures in whole.classes.items():
        for own, other in zip(figures, streamed.classes[name], strict=True):
            assert other == pytest.approx(own, rel=1e-9)


def test_sample_of_neighbours_is_bounded_and_seeded(compared, monkeypatch):
    monkeypatch.setattr(neighbours, "SAMPLE", 50)
    vectors = dominated()
    other = np.roll(vectors, 1, axis=0) + vectors
    first, again = compared(vectors, other).neighbours, compared(vectors, other).neighbours
    assert first == again
    assert first.sample == 50


def test_only_record_is_one_if_the_same_and_undefined_if_not(compared):
    one = np.array([[1, 2, 3]], np.float32)
    same = compared(one, one)
    assert same.classes["all"].centred_cosine.min == 1
    assert same.neighbours.same is None
    other = compared(one, one * np.float32(1.0001)).classes["all"]
    assert np.isnan(other.centred_cosine.min)
    assert other.cosine.min == pytest.approx(1)


def test_zero_vectors_do_not_spread_nan(compared):
    a, b = dominated(5), dominated(5)
    a[2] = 0
    b[2] = 0
    figures = compared(a, b).classes["all"]
    assert figures.cosine.min == pytest.approx(1)
    assert figures.norm_ratio == pytest.approx(1)


def test_nothing_in_common_gives_no_figures(compared):
    result = compared(A, B, ["a", "b", "c"], ["d", "e", "f"])
    assert result.rows.compared == 0
    assert result.classes == {}
    assert result.worst == []
    empty = np.empty((0, 2), np.float32)
    assert compared(empty, empty).rows.total == (0, 0)
    assert compared(empty, A).rows.only[1].number == 3


def test_other_widths_and_doubled_ids_raise_with_names(compared):
    with pytest.raises(UsageError, match=r"a\.h5 holds vectors of 2 numbers, \S*b\.h5 of 3"):
        compared(A, np.ones((3, 3), np.float32))
    with pytest.raises(UsageError, match=r"b\.h5 has 1 id\(s\) more than once: x"):
        compared(A, B, ["x", "y", "z"], ["x", "x", "z"])
