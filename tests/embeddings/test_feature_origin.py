"""How features were made: what files tell, and which differences matter."""

import h5py
import numpy as np
import pytest

from virnucpro_pl.embeddings.embedding_file import EmbeddingFile
from virnucpro_pl.embeddings.feature_origin import (
    check_origin,
    common_origin,
    differing,
    longest_of,
    origin_of,
)
from virnucpro_pl.errors import UsageError
from virnucpro_pl.input.orfs import MEAN_OF_RESIDUES, POOLING
from virnucpro_pl.predict.embedders import ESM2Embedder

ALL = {"model": "m", "weights_sha256": "aa", "layer": "6", "pooling": MEAN_OF_RESIDUES}
NUCLEOTIDES = {**ALL, "pooling": "mean of all tokens", "tokenizer_sha256": "tt"}


@pytest.fixture
def file_with(write_embeddings, tmp_path):
    """An embedding file of two rows with some attributes."""

    def make(name="a.h5", lengths=None, **attributes):
        vectors = np.zeros((2, 3), np.float32)
        path = write_embeddings(tmp_path / name, ["x", "y"], vectors, lengths, **attributes)
        return EmbeddingFile(path)

    return make


def test_origin_of_takes_what_vectors_depend_on_as_text(file_with):
    file = file_with(model="m", layer=np.int64(6), precision="32-true", weights="f.pt", torch="2")
    assert origin_of(file) == {"model": "m", "layer": "6", "precision": "32-true"}
    assert origin_of(file_with("b.h5", model_name="n")) == {"model": "n"}
    assert origin_of(file_with("c.h5", model=np.bytes_("b"), model_name="n")) == {"model": "b"}
    assert origin_of(file_with("d.h5")) == {}


def test_longest_of_a_file_with_lengths_and_without(file_with):
    assert longest_of(file_with(lengths=[7, 1200])) == 1200
    assert longest_of(file_with("b.h5")) is None
    empty = file_with("c.h5", lengths=[1, 1])
    with h5py.File(empty.path, "r+") as file:
        for name in ("lengths", "embeddings", "sequence_ids"):
            part, dtype = file[name][:0], file[name].dtype
            del file[name]
            file.create_dataset(name, data=part, dtype=dtype)
    assert longest_of(empty) == 0


def test_pooling_of_an_embedder_is_the_text_that_is_compared():
    assert ESM2Embedder(weights="random").pooling == MEAN_OF_RESIDUES


@pytest.mark.parametrize(
    ("change", "longest", "differ", "unknown"),
    [
        ({}, None, [], []),
        ({"layer": "5"}, None, ["layer"], []),
        ({"weights_sha256": "bb"}, None, ["weights_sha256"], []),
        ({"model": "n", "weights_sha256": "bb"}, None, ["model"], []),
        ({"model": "n", "weights_sha256": "bb", "layer": "5"}, None, ["model", "layer"], []),
        ({"weights_sha256": None}, None, [], []),  # will be known later
        ({"pooling": "first token"}, 10, ["pooling"], []),
        ({"pooling": POOLING}, 1024, [], []),  # the same numbers
        ({"pooling": POOLING}, 1025, ["pooling"], []),
        ({"pooling": POOLING}, None, [], ["pooling"]),
    ],
)
def test_differing_either_way_round(change, longest, differ, unknown):
    other = {**ALL, **change}
    assert differing("esm2", ALL, other, longest) == (differ, unknown)
    assert differing("esm2", other, ALL, longest) == (differ, unknown)


def test_differing_says_what_one_side_does_not_know():
    assert differing("esm2", {}, ALL, 5) == ([], list(ALL))
    assert differing("esm2", ALL, {"layer": "5"}, 5) == (
        ["layer"],
        ["model", "weights_sha256", "pooling"],
    )
    other = {**NUCLEOTIDES, "tokenizer_sha256": "uu"}
    assert differing("dnabert_s", NUCLEOTIDES, other, 5) == (["tokenizer_sha256"], [])
    assert differing("dnabert_s", NUCLEOTIDES, ALL | {"pooling": "mean of all tokens"}, 5) == (
        [],
        ["tokenizer_sha256"],
    )


def test_common_origin_is_what_all_files_tell_alike(file_with):
    one = file_with(**ALL, precision="32-true")
    other = file_with("b.h5", model="m", layer=6, pooling=POOLING, precision="16-mixed")
    assert common_origin([one, other]) == {"model": "m", "layer": "6", "pooling": MEAN_OF_RESIDUES}


def test_check_origin_names_embedder_field_and_both_values():
    trained = {"dnabert_s": NUCLEOTIDES, "esm2": ALL}
    options = {"source": "best.ckpt", "longest": 166, "advice": "Do this"}
    assert check_origin(trained, trained, **options) == []
    given = {"dnabert_s": {**NUCLEOTIDES, "layer": "5"}, "esm2": {**ALL, "model": "n"}}
    with pytest.raises(UsageError) as caught:
        check_origin(trained, given, **options)
    assert str(caught.value) == (
        "best.ckpt was trained on other embeddings than these: layer of DNABERT-S (m) was 6 and "
        "is 5; model of ESM-2 was m and is n. Do this"
    )
    given = {"dnabert_s": NUCLEOTIDES, "esm2": {**ALL, "weights_sha256": "bb"}}
    with pytest.raises(UsageError, match=r"SHA-256 of the weights of ESM-2 \(m\) was aa and is bb"):
        check_origin(trained, given, **options)
    assert check_origin({"dnabert_s": NUCLEOTIDES}, {"esm2": ALL}, **options) == [
        *("model of DNABERT-S", "SHA-256 of the weights of DNABERT-S", "layer of DNABERT-S"),
        *("pooling of DNABERT-S", "SHA-256 of the tokenizer of DNABERT-S", "model of ESM-2"),
        *("SHA-256 of the weights of ESM-2", "layer of ESM-2", "pooling of ESM-2"),
    ]
