"""The command `plot`: the files that it writes, and what it refuses."""

import base64
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.image import imread

from virnucpro_pl.cli.main import main

PNG = re.compile(r'<img src="data:image/png;base64,([^"]+)" alt="([^"]+)">')
MADE = {"index.html", "scores.png", "calls_by_length.png", "contig_01.png", "contig_02.png"}


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A folder of two records of two chunks, as virnucpro.yaml would write it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "contigs.tsv").write_text(
        "seq_name\tlength\tn_chunks\tn_orfs\tn_viral_chunks\tprediction\tvirus_score\tstatus\n"
        "a<b>\t900\t2\t2\t1\tvirus\t0.65\tok\nb\t600\t2\t1\t0\tothers\t0.2\tok\n"
    )
    (folder / "prediction_results.txt").write_text(
        "Sequence_ID\tPrediction\tscore1\tscore2\na<b>_chunk_1F1\tvirus\t0.1\t0.9\n"
        "a<b>_chunk_2R1\tothers\t0.6\t0.4\nb_chunk_1F2\tothers\t0.8\t0.2\n"
    )
    summary = {
        **{"chunk_length": 500, "warnings": ["RANDOM weights"], "records": 2, "orfs": 3},
        **{"records_by_status": {"ok": 2, "no_orf": 0}, "model": "VirNucPro"},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    run = {"seconds": {"prepare": 1.0, "compute": 12.5}, "tokens_per_second": 1234.5}
    (tmp_path / "results.run.json").write_text(json.dumps(run))
    return folder


@pytest.fixture
def embeddings(write_embeddings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vectors = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    ids = [f"s{i}" for i in range(9)]
    return write_embeddings(tmp_path / "e.h5", ids, vectors, np.arange(9) + 1, model="esm2_t6")


def plot(*words):
    main(["plot", *map(str, words)])


def shown(page):
    """Alternative text and pixels of each picture of a page."""
    import io

    return [(alt, imread(io.BytesIO(base64.b64decode(data)))) for data, alt in PNG.findall(page)]


def test_results_are_drawn_and_shown_on_one_page(results, tmp_path, caplog):
    plot("results/")
    folder = tmp_path / "results.pictures"
    assert {p.name for p in folder.iterdir()} == MADE | {"phases.png"}
    page = (folder / "index.html").read_text()
    pictures = shown(page)
    assert len(pictures) == 5
    for alt, pixels in pictures:
        assert len(alt) > 40
        assert pixels.shape[1] == 1080
    assert (folder / "scores.png").read_bytes() == base64.b64decode(PNG.findall(page)[0][0])
    for part in (
        *("2 records: 1 called virus, 1 others, 0 without a score", "RANDOM weights"),
        *("Along a&lt;b&gt;", "Records with status ok", "1234.5", "VirNucPro results: results"),
        *("bases 1 to 500", "compute 12.5 s", "Calls by length"),
    ):
        assert part in page
    assert "a<b>" not in page
    assert not re.search(r"https?:", page)
    assert "missing" not in page


def test_embeddings_of_results_are_drawn_by_their_scores(results, tmp_path, write_embeddings):
    ids = ["b_chunk_1F2", "a<b>_chunk_2R1", "a<b>_chunk_1F1"]
    write_embeddings(results / "esm2.h5", ids, np.eye(3, 4, dtype=np.float32))
    plot("results", "--longest", "0", "--output", "out")
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"index.html", "scores.png", "calls_by_length.png", "map_esm2.png",
                     "phases.png"}  # fmt: skip
    assert "coloured by score2" in (tmp_path / "out/index.html").read_text()


def test_results_of_classify_lack_records_and_say_so(results, tmp_path):
    for file in (results / "contigs.tsv", results / "summary.json", tmp_path / "results.run.json"):
        file.unlink()
    plot("results")
    page = (tmp_path / "results.pictures/index.html").read_text()
    assert len(shown(page)) == 3
    for part in ("summary.json is missing", "results.run.json beside", "There is no contigs.tsv"):
        assert part in page


def test_results_without_an_orf_are_drawn(results, tmp_path):
    (results / "prediction_results.txt").write_text("Sequence_ID\tPrediction\tscore1\tscore2\n")
    header = (results / "contigs.tsv").read_text().partition("\n")[0]
    (results / "contigs.tsv").write_text(f"{header}\nx\t2\t1\t0\t0\tNA\tNA\ttoo_short\n")
    plot("results")
    page = (tmp_path / "results.pictures/index.html").read_text()
    assert "1 records: 0 called virus, 0 others, 1 without a score" in page
    assert len(shown(page)) == 2


def test_embedding_file_is_mapped_by_length_or_column(embeddings, tmp_path):
    plot("e.h5")
    page = (tmp_path / "e.h5.pictures/index.html").read_text()
    [(alt, pixels)] = shown(page)
    assert "coloured by Length (residues)" in alt
    assert pixels.shape[:2] == (1008, 1080)
    assert "9 embeddings of 4 numbers." in page
    (tmp_path / "t.tsv").write_text("id\tfamily\n" + "".join(f"s{i}\tf{i % 2}\n" for i in range(9)))
    plot("e.h5", "--color", "family", "--table", "t.tsv")
    again = (tmp_path / "e.h5.pictures/index.html").read_text()
    assert "coloured by family" in again
    assert PNG.findall(again) != PNG.findall(page)


def test_pictures_are_replaced_and_stale_ones_removed(results, tmp_path):
    (tmp_path / "results.pictures").mkdir()  # an empty folder is as good as none
    plot("results")
    plot("results", "--longest", "1")
    names = {p.name for p in (tmp_path / "results.pictures").iterdir()}
    assert names == (MADE - {"contig_02.png"}) | {"phases.png"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["absent"], "absent: no such folder of results or embedding file"),
        (["results.run.json"], "cannot be read as HDF5"),
        ([".", "--output", "o"], "holds no results"),
        (["results", "--longest", "-1"], "--longest must be at least 0"),
        (["e.h5", "--color", "family"], "give its table with --table"),
        (["e.h5", "--table", "t.tsv"], "give --color COLUMN"),
        (["e.h5", "--color", "x", "--table", "t.tsv"], "t.tsv cannot be read"),
        (["results", "--output", "e.h5"], "e.h5 is a file, and pictures are a folder"),
        (["results", "--output", "results"], "results is an input of this run"),
        (["e.h5", "--output", "results"], "holds more than pictures of this command: contigs"),
        (["results", "--output", "/proc/no"], "/proc/no cannot be written"),
        (["results", "--colour", "x"], "colour"),
        ([], "PATH is missing"),
    ],
)
def test_bad_usage_exits_2_with_a_message(results, embeddings, tmp_path, capfd, words, message):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        plot(*words)
    said = "".join(capfd.readouterr())
    assert (ended.value.code, "Traceback" in said) == (2, False), said
    assert message in said
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("library", ["matplotlib", "pandas"])
def test_without_the_extra_the_message_tells_how_to_install_it(
    results, tmp_path, monkeypatch, capfd, library
):
    monkeypatch.setitem(sys.modules, library, None)  # as if it were not there
    with pytest.raises(SystemExit) as ended:
        plot("results")
    assert ended.value.code == 2
    said = capfd.readouterr().err
    assert f"Pictures need {library}, which is not installed" in said
    assert "pip install 'virnucpro-pl[plot]'" in said
    assert not (tmp_path / "results.pictures").exists()


def test_page_of_another_program_is_not_replaced(results, tmp_path, capfd):
    theirs = tmp_path / "site" / "index.html"
    theirs.parent.mkdir()
    theirs.write_text("<p>theirs</p>")
    with pytest.raises(SystemExit) as ended:
        plot("results", "--output", "site")
    assert ended.value.code == 2
    assert "site/index.html is no page of this command" in capfd.readouterr().err
    assert theirs.read_text() == "<p>theirs</p>"


def test_other_commands_do_not_import_it():
    # torchmetrics imports matplotlib where it is installed; what is ours does not.
    code = "import sys, virnucpro_pl.predict.virnucpro, virnucpro_pl.cli.main\n"
    code += "print(*(m for m in sys.modules if m.startswith(("
    code += "'virnucpro_pl.plot', 'virnucpro_pl.fit', 'virnucpro_pl.compare'))))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == []
