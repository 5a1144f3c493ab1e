"""The map of an embedding file: its components, its sample, its colours."""

import numpy as np
import pytest
from matplotlib.colors import LogNorm
from matplotlib.text import Text

from virnucpro_pl.embeddings.embedding_file import EmbeddingFile
from virnucpro_pl.errors import InputError, UsageError
from virnucpro_pl.plot.embedding_map import (
    Color,
    Sample,
    color_by_length,
    color_by_table,
    draw_map,
    kind_of_points,
    principal_components,
    read_sample,
)


@pytest.fixture
def embeddings(write_embeddings, tmp_path):
    def write(count=50, width=7, lengths=True, edit=None, **attributes):
        vectors = np.random.default_rng(0).normal(size=(count, width)).astype(np.float32)
        if edit is not None:
            edit(vectors)
        sizes = np.arange(count) + 10 if lengths else None
        ids = [f"s{i}" for i in range(count)]
        path = write_embeddings(tmp_path / "e.h5", ids, vectors, sizes, **attributes)
        return EmbeddingFile(path), vectors

    return write


@pytest.mark.parametrize("shape", [(40, 9), (9, 40), (3, 2), (2, 3)])
def test_components_are_those_of_the_singular_values(shape):
    vectors = np.random.default_rng(1).normal(size=shape).astype(np.float32) * np.arange(shape[1])
    points, shares = principal_components(vectors)
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    expected = np.pad(left * values, ((0, 0), (0, 1)))[:, :2]
    np.testing.assert_allclose(np.abs(points), np.abs(expected), atol=1e-4)
    np.testing.assert_allclose(shares, (values**2 / (values**2).sum())[:2], atol=1e-6)


def test_components_of_equal_vectors_are_finite():
    points, shares = principal_components(np.ones((5, 3), np.float32))
    assert np.array_equal(points, np.zeros((5, 2)))
    assert np.isfinite(shares).all()


def test_sample_is_drawn_without_what_is_not_finite(embeddings):
    def spoil(vectors):
        vectors[3] = np.nan

    file, vectors = embeddings(edit=spoil)
    whole = read_sample(file)
    assert whole.ids == [f"s{i}" for i in whole.rows]
    assert whole.rows.tolist() == [i for i in range(50) if i != 3]
    assert (whole.total, whole.lost) == (50, 1)
    assert np.array_equal(whole.vectors, vectors[whole.rows])
    some = read_sample(file, limit=20)
    assert len(some.rows) + some.lost == 20
    assert np.all(np.diff(some.rows) > 0)
    assert np.array_equal(some.rows, read_sample(file, limit=20).rows)
    assert np.array_equal(some.vectors, vectors[some.rows])


@pytest.mark.parametrize("shape", [(0, 3), (1, 3), (5, 1)])
def test_too_few_rows_or_numbers_raise(embeddings, shape):
    file, _ = embeddings(*shape)
    with pytest.raises(UsageError, match=r"cannot be drawn: .* finite row\(s\) of"):
        read_sample(file)


@pytest.mark.parametrize(
    ("model", "unit"), [("esm2_t6", "residues"), ("DNABERT-S", "bases"), ("x", "letters")]
)
def test_lengths_are_those_of_the_sampled_rows(embeddings, model, unit):
    file, _ = embeddings(model=model)
    sample = read_sample(file, limit=10)
    color = color_by_length(file, sample)
    assert color.label == f"Length ({unit})"
    assert color.values.tolist() == (sample.rows + 10).tolist()


def test_no_lengths_raise(embeddings):
    file, _ = embeddings(lengths=False)
    with pytest.raises(UsageError, match="does not tell lengths: give --color COLUMN"):
        color_by_length(file, read_sample(file))


def write_table(tmp_path, rows, header="id\tkind\tvalue"):
    path = tmp_path / "t.tsv"
    path.write_text("\n".join([header, *rows, ""]))
    return path


def test_table_numbers_and_names_are_found_by_id(embeddings, tmp_path):
    file, _ = embeddings(4)
    sample = read_sample(file)
    rows = ["s3\tb\t1.5", "other\tx\tx", "s0\ta\tNA", "s1\ta\t-2"]
    table = write_table(tmp_path, rows)
    kind = color_by_table(file, sample, table, "kind")
    assert kind.names == ("a", "b")
    np.testing.assert_array_equal(kind.values, [0, 0, np.nan, 1])
    value = color_by_table(file, sample, table, "value")
    assert value.names == ()
    np.testing.assert_array_equal(value.values, [np.nan, -2, np.nan, 1.5])


def test_orfs_take_the_colour_of_their_record_where_the_table_is_of_records(
    write_embeddings, tmp_path
):
    ids = ["a_chunk_1F1", "a_chunk_12R2", "b_chunk_1F1", "c"]
    vectors = np.eye(4, 3, dtype=np.float32)
    file = EmbeddingFile(write_embeddings(tmp_path / "e.h5", ids, vectors))
    table = write_table(tmp_path, ["a\tphage\t1", "b\thost\t2", "\tx\t3"])
    color = color_by_table(file, read_sample(file), table, "kind")
    assert color.names == ("phage", "host")
    np.testing.assert_array_equal(color.values, [0, 0, 1, np.nan])


def test_many_names_are_drawn_together(embeddings, tmp_path):
    file, _ = embeddings(20)
    rows = [f"s{i}\tk{min(i, 9)}\t0" for i in range(20)]
    color = color_by_table(file, read_sample(file), write_table(tmp_path, rows), "kind")
    assert len(color.names) == 7
    assert (color.names[0], color.names[-1]) == ("k9", "4 others")
    assert np.bincount(color.values.astype(int)).tolist() == [11, 1, 1, 1, 1, 1, 4]


@pytest.mark.parametrize(
    ("rows", "column", "error", "message"),
    [
        (["s0\ta\t1"], "id", UsageError, "has no column 'id' after the ids; it has kind, value"),
        (["x\ta\t1"], "kind", UsageError, r"has none of the ids of .*e\.h5, such as s0"),
        (["s0\ta\t1", "s0\tb\t2"], "kind", InputError, "line 3: s0 is there twice"),
        (["s0\ta"], "kind", InputError, "line 2: 2 columns, not 3"),
    ],
)
def test_bad_tables_raise(embeddings, tmp_path, rows, column, error, message):
    file, _ = embeddings(4)
    with pytest.raises(error, match=message):
        color_by_table(file, read_sample(file), write_table(tmp_path, rows), column)


def test_missing_table_raises(embeddings, tmp_path):
    file, _ = embeddings(4)
    with pytest.raises(InputError, match="cannot be read"):
        color_by_table(file, read_sample(file), tmp_path / "absent.tsv", "kind")


@pytest.mark.parametrize(
    ("model", "ids", "kind"),
    [
        ("esm2_t36_3B_UR50D", ["a_chunk_1F1", "b_chunk_22R3"], "ORFs (proteins)"),
        ("DNABERT-S-tiny", ["a|b_chunk_1F1"], "ORFs (nucleotides)"),
        ("mine", ["a_chunk_1F1"], "ORFs"),
        ("esm2_t6", ["a_chunk_1F1", "a"], "records (proteins)"),
        ("DNABERT-S", ["a_chunk_1F4"], "records (nucleotides)"),
        ("mine", ["_chunk_1F1"], "records"),
    ],
)
def test_points_are_named_by_their_ids_and_model(model, ids, kind):
    assert kind_of_points(model, ids) == kind


def drawn(color, total=30, lost=0):
    count = len(color.values)
    vectors = np.random.default_rng(0).normal(size=(count, 5)).astype(np.float32)
    ids = [f"r{i}_chunk_1F1" for i in range(count)]
    sample = Sample(np.arange(count), ids, vectors, total, lost)
    figure, alt = draw_map(sample, color, "esm2")
    return figure, alt, [found.get_text() for found in figure.findobj(Text)]


def test_map_of_numbers_has_a_bar_and_says_what_is_shown():
    figure, alt, shown = drawn(Color("Length (bases)", np.linspace(1, 100, 20)), lost=2)
    axis, bar = figure.axes
    words = "a random sample of 20 of 30 ORFs (proteins), 2 not finite left out"
    title = f"esm2\n{words}"
    assert axis.get_title() == title
    assert axis.get_xlabel().startswith("PC 1 (")
    assert axis.get_ylabel().endswith(" % of variance)")
    assert bar.get_ylabel() == "Length (bases)"
    assert isinstance(axis.collections[0].norm, LogNorm)
    assert alt.startswith(f"Map of {words}, as esm2 embeds them, by")
    assert "coloured by Length (bases)" in alt
    assert not any("none" in text for text in shown)


def test_map_of_names_has_a_legend_with_counts():
    color = Color("kind", np.array([0, 0, 1, np.nan, 1, 1]), ("phage", "host"))
    figure, _, shown = drawn(color, total=6)
    assert {"kind", "phage (2)", "host (3)", "none (1)"} <= set(shown)
    assert figure.axes[0].get_title() == "esm2\n6 ORFs (proteins)"
    assert sum(len(points.get_offsets()) for points in figure.axes[0].collections) == 6


def test_long_and_odd_names_are_cut_and_shown_in_the_legend():
    names = ("_" + "n" * 80, "$a$")
    figure, _, shown = drawn(Color("k" * 60, np.array([0, 1, 1]), names), total=3)
    figure.canvas.draw()
    assert figure.axes[0].get_position().height * figure.get_figheight() > 4  # inches
    assert f" _{'n' * 19}…{'n' * 19} (1)" in shown
    assert r"\$a\$ (2)" in shown  # as matplotlib writes dollars that begin no formula
    assert "k" * 20 + "…" + "k" * 19 in shown


@pytest.mark.parametrize("values", [[np.nan] * 4, [3.0] * 4, [0.0, 1.0, np.nan, 2.0]])
def test_map_of_any_numbers_is_drawn(values):
    figure, *_ = drawn(Color("x", np.array(values)), total=4)
    assert sum(len(points.get_offsets()) for points in figure.axes[0].collections) == 4
