"""`export`: every vector under its own id, in formats that other programs read."""

import hashlib
import sys

import h5py
import numpy as np
import pytest

from virnucpro_pl.cli.main import main
from virnucpro_pl.embeddings import embedding_file
from virnucpro_pl.embeddings import export as module
from virnucpro_pl.embeddings.export import dataset_name

IDS = ["a_chunk_1F1", "sp|x/y", "ü", "sp|x%2Fy", ".", "a b", ".."]
VECTORS = np.arange(21, dtype=np.float32).reshape(7, 3)
VECTORS[5] = np.nan


@pytest.fixture
def path(write_embeddings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(embedding_file, "_ROW_BLOCK", 2)
    path = write_embeddings(tmp_path / "out.h5", IDS, VECTORS, range(7), model="m", layer=3)
    with h5py.File(path, "r+") as file:
        file["failed"] = [5]
    return path


def test_per_id_is_read_as_uniprot_and_biotrainer_files_are(path, tmp_path):
    main(["export", "out.h5", "--to", "per-id"])
    with h5py.File(tmp_path / "out.per-id.h5") as file:
        assert len(file) == len(IDS)  # nothing lies in groups
        assert all(isinstance(dataset, h5py.Dataset) for dataset in file.values())
        by_original_id = {file[name].attrs["original_id"]: file[name][:] for name in file}
        assert file["a_chunk_1F1"][:].tolist() == [0, 1, 2]
        assert file["ü"].dtype == np.float32
        assert file.attrs["model_name"] == "m"
    assert set(by_original_id) == set(IDS)
    for name, vector in zip(IDS, VECTORS, strict=True):
        assert np.array_equal(by_original_id[name], vector, equal_nan=True)


def test_dataset_names_are_safe_and_differ():
    names = [dataset_name(name) for name in IDS]
    assert names[:5] == ["a_chunk_1F1", "sp|x%2Fy", "ü", "sp|x%252Fy", "%2E"]
    assert names[5:] == ["a b", "%2E%2E"]
    assert len(set(names)) == len(IDS)


def write_letters(path, records, width=3):
    """Write lines of `width` letters, as FASTA files have them."""
    lines = []
    for name, letters in records:
        lines += [f">{name} text", *(letters[i : i + width] for i in range(0, len(letters), width))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read_as_biotrainer(path, letters):
    """Vector of a sequence under the key that biotrainer computes: SHA-256 of letters_count."""
    with h5py.File(path) as file:
        key = hashlib.sha256(f"{letters}_{len(letters)}".encode()).hexdigest()
        return file[key][:].tolist(), file[key].attrs["original_id"]


FIVE = IDS[1:5] + IDS[6:]


@pytest.fixture
def five(write_embeddings, path, tmp_path):
    """The embeddings that are there, and the file that they are of."""
    vectors, lengths = np.delete(VECTORS, [0, 5], axis=0), [1, 2, 3, 4, 6]
    write_embeddings(tmp_path / "five.h5", FIVE, vectors, lengths, model="m")
    letters = ["A", "AC", "acU", "MK VL*", "ACDEFG"]
    write_letters(tmp_path / "in.faa", zip(FIVE, letters, strict=True), width=4)
    return dict(zip(letters, zip(vectors.tolist(), FIVE, strict=True), strict=True))


def test_biotrainer_finds_each_vector_by_its_sequence(five, tmp_path):
    main(["export", "five.h5", "--to", "biotrainer", "--sequences", "in.faa"])
    with h5py.File(tmp_path / "five.biotrainer.h5") as file:
        assert len(file) == 5
        assert file.attrs["model_name"] == "m"
    for letters, (vector, name) in five.items():
        assert read_as_biotrainer("five.biotrainer.h5", letters) == (vector, name)


def test_biotrainer_keeps_the_first_of_equal_sequences(five, tmp_path, capsys):
    with h5py.File("five.h5", "r+") as file:
        file["lengths"][1] = 1
    write_letters(tmp_path / "in.faa", zip(FIVE, ["C", "C", "MKV", "ACDE", "ACDEFG"], strict=True))
    main(["export", "five.h5", "--to", "biotrainer", "--sequences", "in.faa"])
    with h5py.File("five.biotrainer.h5") as file:
        assert len(file) == 4
    assert read_as_biotrainer("five.biotrainer.h5", "C") == ([3, 4, 5], FIVE[0])
    log = capsys.readouterr().err
    assert "1 record(s) have the sequence of an earlier one" in log
    assert "Wrote five.biotrainer.h5: 4 vectors" in log


def test_biotrainer_of_records_that_were_cut(five, tmp_path):
    with h5py.File("five.h5", "r+") as file:
        file["lengths"][:] = [1, 2, 2, 2, 2]
        file["lengths"].attrs["max_length"] = 2
    main(["export", "five.h5", "--to", "biotrainer", "--sequences", "in.faa"])
    assert read_as_biotrainer("five.biotrainer.h5", "ACDEFG") == ([18, 19, 20], "..")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r[:-1], "in.faa has fewer records than five.h5 has rows (5)"),
        (lambda r: [*r, ("more", "A")], "in.faa has more records than five.h5 has rows (5)"),
        (lambda r: r[::-1], "record 1 is .., but row 1 of five.h5 is sp|x/y"),
        (lambda r: [*r[:4], ("../2", r[4][1])], "if ids were changed on the way, change them"),
        (lambda r: [*r[:4], ("..", "ACDE")], "record 5 (..) has 4 letters, but 6 were embedded"),
        (lambda r: [("#", "A")], "record 1 is #, but row 1"),
    ],
)
def test_biotrainer_refuses_sequences_that_were_not_embedded(
    five, tmp_path, capsys, change, message
):
    records = [(name, letters) for letters, (_, name) in five.items()]
    write_letters(tmp_path / "in.faa", change(records))
    before = sorted(tmp_path.iterdir())
    words = ("five.h5", "--to", "biotrainer", "--sequences", "in.faa")
    assert message in refused(capsys, *words)
    assert sorted(tmp_path.iterdir()) == before


def test_npy_holds_matrix_and_ids(path, tmp_path, caplog):
    main(["export", "out.h5", "--to", "npy", "--output", "m.npy"])
    matrix = np.load(tmp_path / "m.npy", mmap_mode="r")
    assert matrix.dtype == np.float32
    assert np.array_equal(matrix, VECTORS, equal_nan=True)
    assert (tmp_path / "m.ids.txt").read_text(encoding="utf-8").split("\n") == [*IDS, ""]


def test_npy_of_no_rows(write_embeddings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_embeddings(tmp_path / "e.h5", [], np.empty((0, 3), np.float32))
    for kind in ("npy", "per-id"):
        main(["export", "e.h5", "--to", kind])
    assert np.load("e.npy").shape == (0, 3)
    assert (tmp_path / "e.ids.txt").read_text() == ""


def test_anndata_is_read_by_anndata(path, tmp_path):
    anndata = pytest.importorskip("anndata")
    main(["export", "out.h5", "--to", "anndata"])
    data = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert np.array_equal(data.X, VECTORS, equal_nan=True)
    assert data.obs_names.tolist() == IDS
    assert data.obs["length"].tolist() == list(range(7))
    assert data.obs["failed"].tolist() == [False] * 5 + [True, False]
    assert data.uns["model"] == "m"
    assert anndata.read_h5ad(tmp_path / "out.h5ad", backed="r")[2].X[:].tolist() == [[6, 7, 8]]


def refused(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        main(["export", *words])
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_anndata_missing_names_the_install_line(path, monkeypatch, capsys):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert "pip install 'virnucpro-pl[anndata]'" in refused(capsys, "out.h5", "--to", "anndata")


@pytest.mark.parametrize("kind", ["per-id", "anndata", "npy"])
def test_output_that_exists_is_kept_unless_overwritten(path, tmp_path, capsys, kind):
    if kind == "anndata":
        pytest.importorskip("anndata")
    words = ("out.h5", "--to", kind)
    main(["export", *words])
    assert "exists already" in refused(capsys, *words)
    written = [file for file in tmp_path.iterdir() if file != path]
    before = [file.stat().st_ino for file in written]
    main(["export", *words, "--overwrite", "true"])
    assert all(file.stat().st_ino != old for file, old in zip(written, before, strict=True))
    for file in written:
        file.write_bytes(b"")  # as mktemp makes it
    main(["export", *words, "--overwrite", "true"])
    assert all(file.stat().st_size for file in written)


def write_h5(path, **attributes):
    with h5py.File(path, "w") as file:
        file.attrs.update(attributes)
        file["obs"] = [1.0]


@pytest.mark.parametrize(
    ("kind", "victim", "write"),
    [
        ("npy", "out.npy", lambda path: path.write_text("mine")),
        ("npy", "out.npy", lambda path: np.save(path, np.ones(3))),
        ("npy", "out.ids.txt", lambda path: path.write_text("mine")),
        ("per-id", "out.per-id.h5", lambda path: path.write_text("mine")),
        ("per-id", "out.per-id.h5", write_h5),
        ("per-id", "out.per-id.h5", lambda path: write_h5(path, format="x")),
        ("anndata", "out.h5ad", lambda path: path.write_text("mine")),
        ("anndata", "out.h5ad", write_h5),
        ("anndata", "out.h5ad", lambda path: write_h5(path, **{"encoding-type": "anndata"})),
    ],
)
def test_other_files_are_never_overwritten(path, tmp_path, capsys, kind, victim, write):
    if kind == "anndata":
        pytest.importorskip("anndata")
    write(tmp_path / victim)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    line = refused(capsys, "out.h5", "--to", kind, "--overwrite", "true")
    assert f"{victim} is not overwritten, since it is nothing that export --to {kind}" in line
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_ids_of_another_matrix_are_not_overwritten(path, tmp_path, capsys):
    main(["export", "out.h5", "--to", "npy"])
    (tmp_path / "out.ids.txt").write_text("a list of my own\n")
    assert "out.ids.txt is not overwr" in refused(capsys, "out.h5", "--to=npy", "--overwrite=true")
    assert (tmp_path / "out.ids.txt").read_text() == "a list of my own\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["absent.h5", "--to", "npy"], "absent.h5: no such embedding file"),
        (["out.h5", "--to", "csv"], "csv"),
        (["out.h5"], "to"),
        (["out.h5", "--to", "npy", "--output", "m.txt"], "ends in .npy"),
        (["out.h5", "--to", "biotrainer"], "--to biotrainer needs --sequences"),
        (["out.h5", "--to", "npy", "--sequences", "out.h5"], "--sequences is for --to biotrainer"),
        (["out.h5", "--to=biotrainer", "--sequences=no.faa"], "no.faa cannot be read: "),
        (["out.h5", "--to=biotrainer", "--sequences=out.h5"], "neither FASTA nor FASTQ"),
        (
            ["out.h5", "--to=biotrainer", "--sequences=out.h5", "--output=out.h5"],
            "out.h5 is an input of this run",
        ),
        (["out.h5", "--to", "npy", "--output", "no/m.npy"], "the folder no does not exist"),
        (["out.h5", "--to=per-id", "--output=out.h5", "--overwrite=true"], "input of this run"),
        (["out.h5", "--to", "per-id", "--output", "."], "is a folder"),
    ],
)
def test_bad_usage_exits_2_and_writes_nothing(path, tmp_path, capsys, words, message):
    before = sorted(tmp_path.iterdir())
    assert message in refused(capsys, *words)
    assert sorted(tmp_path.iterdir()) == before


def test_unfinished_file_is_refused(path, capsys):
    with h5py.File(path, "r+") as file:
        file.attrs["complete"] = False
    assert "never completed" in refused(capsys, "out.h5", "--to", "npy")


@pytest.mark.parametrize("kind", ["per-id", "anndata", "npy"])
def test_failure_on_the_way_leaves_nothing(path, tmp_path, monkeypatch, kind):
    if kind == "anndata":
        pytest.importorskip("anndata")
    before = sorted(tmp_path.iterdir())

    def broken(self):
        yield IDS[:2], VECTORS[:2]
        raise OSError("disk full")

    monkeypatch.setattr(embedding_file.EmbeddingFile, "row_blocks", broken)
    with pytest.raises(module.UnwritableError, match=r"out\..* cannot be written: disk full"):
        module.export(path, to=kind)
    assert sorted(tmp_path.iterdir()) == before


def test_export_does_not_import_anndata_before_it_is_asked_for():
    import subprocess

    code = "import sys, virnucpro_pl.embeddings.export; print('anndata' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "False"
