"""VirNucPro's own files, written here as it writes them."""

import pickle

import numpy as np
import pytest
import torch

from virnucpro_pl.compare.original_file import OriginalFile
from virnucpro_pl.errors import UsageError

IDS = ["c_chunk_1F1", "x/y", "ü"]
VECTORS = torch.arange(12, dtype=torch.float32).reshape(3, 4)


def esm(ids=IDS, vectors=VECTORS):
    return {"proteins": list(ids), "data": [vector.clone() for vector in vectors]}


def dnabert_s(ids=IDS, vectors=VECTORS):
    entries = [
        {"label": name, "mean_representation": vector.tolist()}
        for name, vector in zip(ids, vectors, strict=True)
    ]
    return {"nucleotide": list(ids), "data": entries}


def merged(ids=IDS, vectors=VECTORS):
    return {"ids": list(ids), "data": vectors.clone()}


def names(file):
    return [name.decode() for block in file.id_blocks() for name in block]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("content", "kind"), [(esm, "ESM-2"), (dnabert_s, "DNABERT-S"), (merged, "merged")]
)
def test_each_form_is_read(tmp_path, content, kind, zipped):
    path = tmp_path / "f.pt"
    torch.save(content(), path, _use_new_zipfile_serialization=zipped)
    file = OriginalFile(path)
    assert (len(file), file.width, file.kind) == (3, 4, kind)
    assert names(file) == IDS
    for rows in ([0, 1, 2], [2, 0], [1], [1, 1]):
        read = file.rows(np.array(rows))
        assert read.dtype == np.float32
        assert np.array_equal(read, VECTORS[rows].numpy())


def test_half_vectors_are_cast_up(tmp_path):
    torch.save(esm(vectors=VECTORS.half()), tmp_path / "f.pt")
    assert OriginalFile(tmp_path / "f.pt").rows(np.arange(3)).dtype == np.float32


@pytest.mark.parametrize("form", [esm, dnabert_s, merged])
def test_folder_is_read_as_one(tmp_path, form):
    torch.save(form(IDS[:2], VECTORS[:2]), tmp_path / "output_1.pt")
    torch.save(form(IDS[2:], VECTORS[2:]), tmp_path / "output_2.pt")
    (tmp_path / "output_1.fa").touch()
    file = OriginalFile(tmp_path)
    assert names(file) == IDS
    assert np.array_equal(file.rows(np.array([2, 0, 1])), VECTORS[[2, 0, 1]].numpy())


def test_folder_of_several_kinds_or_none_raises(tmp_path):
    with pytest.raises(UsageError, match=r"folder without \.pt"):
        OriginalFile(tmp_path)
    torch.save(esm(), tmp_path / "a.pt")
    torch.save(merged(), tmp_path / "b.pt")
    with pytest.raises(UsageError, match=r"several kinds: \['ESM-2', 'merged'\]"):
        OriginalFile(tmp_path)


class Evil:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (VECTORS, "it holds Tensor"),
        ({"data": VECTORS}, r"it holds \['data'\]"),
        ({"ids": IDS, "proteins": IDS, "data": VECTORS}, "it holds"),
        ({"ids": IDS}, "it holds"),
        (merged(IDS[:2]), "3 vectors, but 2 ids"),
        (merged([1, 2, 3]), "not a list of ids"),
        ({"ids": IDS, "data": True}, "data is a bool, not vectors"),
        ({"ids": IDS, "data": torch.zeros(1).expand(3, 10**12)}, "data is a Tensor, not vectors"),
        ({"ids": IDS, "data": [{"label": IDS[0]}, 1, 2]}, "labels and ids"),
        ({"ids": IDS, "data": [torch.tensor(1.0)] * 3}, "several widths"),
        ({"ids": IDS, "data": [torch.zeros(1).expand(10**12)] * 3}, "several widths"),
        ({"ids": IDS, "data": [[10**400]] * 3}, "no vector"),
        (merged(vectors=VECTORS[0]), r"\(4,\), not vectors"),
        (merged(vectors=VECTORS.long()), "int64"),
        ({"proteins": IDS, "data": [VECTORS[0], VECTORS[1, :2], VECTORS[2]]}, "several widths"),
        ({"proteins": IDS, "data": ["abcd"] * 3}, "several widths"),
        ({"nucleotide": IDS, "data": dnabert_s(IDS[::-1])["data"]}, "labels and ids"),
        ({"nucleotide": IDS, "data": [["a", "b"]] * 3}, "no vector"),
        ({"ids": IDS, "data": Evil()}, "wants to run"),
    ],
)
def test_other_content_raises_and_runs_nothing(tmp_path, capsys, content, message):
    path = tmp_path / "f.pt"
    torch.save(content, path)
    with pytest.raises(UsageError, match=rf"f\.pt.*{message}"):
        OriginalFile(path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"junk", pickle.dumps({"ids": IDS})])
def test_damaged_file_raises(tmp_path, content):
    path = tmp_path / "f.pt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"f\.pt"):
        OriginalFile(path)


def test_missing_file_raises(tmp_path):
    with pytest.raises(UsageError, match="no such file of VirNucPro embeddings"):
        OriginalFile(tmp_path / "absent.pt")
