"""Embedding files from strangers: what is needed is enough, and every fault is named."""

import os
import pickle

import h5py
import numpy as np
import pytest

from virnucpro_pl.embeddings import embedding_file as module
from virnucpro_pl.embeddings.embedding_file import EmbeddingFile
from virnucpro_pl.embeddings.id_table import IdTable, write_ids
from virnucpro_pl.errors import InputError

VECTORS = np.arange(15, dtype=np.float32).reshape(5, 3)
IDS = ["a_chunk_1F1", "b|x/y", "ü", "d", "e"]


@pytest.fixture
def path(write_embeddings, tmp_path):
    return write_embeddings(tmp_path / "e.h5", IDS, VECTORS)


def test_embedding_file_with_no_more_than_needed_is_read(path):
    file = EmbeddingFile(path)
    assert (len(file), file.width) == (5, 3)
    assert [name.decode() for block in file.id_blocks() for name in block] == IDS
    for rows in ([1, 2, 3], [4, 0, 2], [2], [3, 3, 1]):
        assert np.array_equal(file.rows(np.array(rows)), VECTORS[rows])


def test_embedding_file_of_fixed_length_ids_and_half_vectors_is_read(tmp_path, path):
    with h5py.File(path, "r+") as file:
        del file["sequence_ids"], file["embeddings"]
        file["sequence_ids"] = np.array([b"a", b"bcd", b"e", b"f", b"g"])
        file["embeddings"] = VECTORS.astype(np.float16)
    file = EmbeddingFile(path)
    table, _ = write_ids(file, tmp_path, "ids")
    assert table(np.arange(5)) == ["a", "bcd", "e", "f", "g"]
    assert file.rows(np.arange(2)).dtype == np.float32


def attribute(name, value):
    return lambda file: file.attrs.__setitem__(name, value)


def replace(name, *value, **options):
    def edit(file):
        del file[name]
        if value or options:
            file.create_dataset(name, *value, **options)

    return edit


def name_rows(*ids):
    return replace("sequence_ids", data=list(ids), dtype=h5py.string_dtype())


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (attribute("format", "other"), "format is 'other'"),
        (attribute("format_version", 2), "format_version 2"),
        (attribute("complete", False), "never completed"),
        (lambda file: file.attrs.clear(), "format is None"),
        (replace("embeddings"), "no /embeddings of 2 dim"),
        (replace("embeddings", data=np.ones(5)), "no /embeddings of 2 dim"),
        (lambda file: [replace("embeddings")(file), file.create_group("embeddings")], "no /emb"),
        (replace("embeddings", data=np.ones((5, 3), np.int64)), "is int64, not float32"),
        (replace("embeddings", data=np.ones((4, 3))), "4 vectors, but 5 ids"),
        (replace("sequence_ids"), "no /sequence_ids of 1 dim"),
        (replace("sequence_ids", data=np.arange(5)), "/sequence_ids is int64, not text"),
        (name_rows("a", "b\tc", "d", "e", "f"), r"row 1, 'b\\tc'"),
        (name_rows("a", "b", "c\n", "e", "f"), "row 2"),
        (name_rows("a", "b", "c", "", "f"), "row 3, '', is empty"),
        (replace("sequence_ids", data=[b"\xff"] * 5, dtype=h5py.string_dtype()), "cannot be read"),
    ],
)
def test_embedding_file_with_a_fault_raises_and_names_it(path, tmp_path, edit, message):
    with h5py.File(path, "r+") as file:
        edit(file)
    with pytest.raises(InputError, match=rf"e\.h5.*{message}"):
        write_ids(EmbeddingFile(path), tmp_path, "ids")


UNWRITTEN = {"shape": (5, 10**9), "dtype": "f4", "chunks": (1, 1024)}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (replace("embeddings", **UNWRITTEN), r"not all of the 5 x 1000000000 entries of /embed"),
        (replace("embeddings", shape=(5, 10**9), dtype="f4"), "not all of the 5 x 1000000000"),
        (
            lambda file: [
                replace("embeddings", shape=(10**10, 3), dtype="f4", chunks=(9, 3))(file),
                replace("sequence_ids", shape=(10**10,), dtype="S3", chunks=(9,))(file),
            ],
            "not all of the 10000000000 x 3",
        ),
        (attribute("lengths", 1), None),
        (lambda file: file.__setitem__("lengths", h5py.SoftLink("/lengths")), "/lengths cannot be"),
        (lambda file: file.__setitem__("lengths", h5py.SoftLink("/nowhere")), "/lengths cannot be"),
        (
            lambda file: file.__setitem__("failed", h5py.ExternalLink("no.h5", "/a")),
            "/failed canno",
        ),
        (lambda file: file.create_group("lengths"), "/lengths is not a list of whole numbers"),
        (lambda file: file.create_dataset("failed", **UNWRITTEN), "/failed is not a list"),
        (lambda file: file.create_dataset("failed", (10**10,), "i8"), "not all of the 10000000000"),
        (lambda file: file.__setitem__("failed", [0, 5]), "/failed holds numbers beyond 0 to 4"),
        (lambda file: file.__setitem__("failed", [-1]), "/failed holds numbers beyond 0 to 4"),
        (
            lambda file: file.__setitem__("lengths", np.array([1, 2, 3, 4, 2**63], np.uint64)),
            "/lengths holds numbers beyond 0 to 2147483647",
        ),
        (attribute("chunk_length", -1), "its chunk_length is no whole number, but .*-1"),
        (attribute("format", ["a", "b"]), "cannot be read as HDF5"),
    ],
)
def test_numbers_that_a_file_only_promises_are_never_made_up(path, edit, message):
    with h5py.File(path, "r+") as file:
        edit(file)

    def read():
        with EmbeddingFile(path) as file:
            return (
                file.ids,
                file.rows(np.arange(len(file))),
                file.lengths,
                file.failed,
                (file.chunk_length),
            )

    if message is None:
        read()
        return
    with pytest.raises(InputError, match=rf"e\.h5.*{message}"):
        read()


@pytest.mark.parametrize("content", [None, b"", b"\x89HDF\r\n\x1a\n cut off", b">a\nACGT\n"])
def test_embedding_file_missing_or_junk_raises(tmp_path, content):
    path = tmp_path / "e.h5"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"e\.h5.*(no such|cannot be read as HDF5)"):
        len(EmbeddingFile(path))


def test_embedding_file_damaged_later_raises_with_rows(path):
    with h5py.File(path, "r+") as file:
        replace("embeddings", data=VECTORS, chunks=(2, 3), fletcher32=True)(file)
    with h5py.File(path) as file:
        offset = file["embeddings"].id.get_chunk_info(2).byte_offset
    with path.open("r+b") as raw:
        raw.seek(offset)
        raw.write(b"\x12\x34")
    file = EmbeddingFile(path)
    assert np.array_equal(file.rows(np.array([0, 1])), VECTORS[:2])
    with pytest.raises(InputError, match=r"e\.h5 is damaged in rows 3 to 4"):
        file.rows(np.array([4, 3]))


def test_embedding_file_is_opened_anew_in_a_forked_process(path):
    file = EmbeddingFile(path)
    opened = file.file
    assert file.file is opened
    if (child := os.fork()) == 0:
        os._exit(0 if file.file is not opened and file.rows(np.arange(5))[4, 2] == 14 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert pickle.loads(pickle.dumps(file)).path == path


@pytest.mark.parametrize("block", [2, 65_536])
def test_write_ids_table_gives_any_rows(path, tmp_path, monkeypatch, block):
    monkeypatch.setattr(module, "_ID_BLOCK", block)
    table, numbers = write_ids(EmbeddingFile(path), tmp_path, "ids")
    assert len(table) == len(numbers) == len(set(numbers.tolist())) == 5
    assert IdTable(tmp_path, "ids")(np.array([4, 0, 2])) == ["e", "a_chunk_1F1", "ü"]
