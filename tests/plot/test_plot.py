"""The command `plot`: the files that it writes, and what it refuses."""

import base64
import json
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from virnucpro_pl.cli.main import main
from virnucpro_pl.plot.names import file_names

IMAGE = re.compile(r'<img src="data:image/([a-z+]+);base64,([^"]+)" alt="([^"]+)">')
A, B = file_names(["a<b>", "b"]).values()
MADE = ["scores", "calls_by_length", A, B, "phases"]


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
    """Kind, content and alternative text of each picture of a page."""
    return [(kind, base64.b64decode(data), alt) for kind, data, alt in IMAGE.findall(page)]


def drawn(folder):
    """Names of the pictures in a folder, which has each as PNG and SVG beside the page."""
    files = {p.name for p in folder.iterdir()}
    names = {name.removesuffix(".png") for name in files if name.endswith(".png")}
    assert files == {"index.html", *(f"{name}.{kind}" for name in names for kind in ("png", "svg"))}
    return names


def test_results_are_drawn_and_shown_on_one_page(results, tmp_path, caplog):
    plot("results/")
    folder = tmp_path / "results.pictures"
    assert drawn(folder) == set(MADE)
    page = (folder / "index.html").read_text()
    pictures = shown(page)
    assert re.findall(r'<figure id="([^"]+)">', page) == MADE
    for name, (kind, content, alt) in zip(MADE, pictures, strict=True):
        assert len(alt) > 40
        assert content == (folder / f"{name}.{kind[:3]}").read_bytes()
        assert imread(folder / f"{name}.png").shape[1] == 1800
        assert b"<svg" in (folder / f"{name}.svg").read_bytes()[:1000]
    for part in (
        *("2 records: 1 called virus, 1 others, 0 without a score", "RANDOM weights"),
        *("Along a&lt;b&gt;", "Records with status ok", "1234.5", "VirNucPro results: results"),
        *("bases 1 to 500", "compute 12.5 s", "Calls by length"),
        f'<tr><td><a href="#{A}">a&lt;b&gt;</a></td><td class="number">900</td>',
    ):
        assert part in page
    assert "<td>0.6500</td><td>virus</td></tr>" in page
    assert "a<b>" not in page
    assert not re.search(r"https?:", page)
    assert "missing" not in page


def test_columns_of_a_later_table_are_listed(results, tmp_path):
    header, *rows = (results / "contigs.tsv").read_text().splitlines()
    lines = [f"{header}\tweighted_delta\tcall\ttier", *(f"{row}\t0.3\tviral\tlow" for row in rows)]
    (results / "contigs.tsv").write_text("\n".join([*lines, ""]))
    plot("results")
    page = (tmp_path / "results.pictures/index.html").read_text()
    headings = re.findall(r'<th scope="col"[^>]*>([^<]+)</th>', page)
    assert headings == ["Record", "Bases", "Chunks", "Viral chunks", "virus_score", "Prediction",
                        "Call", "Tier"]  # fmt: skip
    assert "<td>0.6500</td><td>virus</td><td>viral</td><td>low</td></tr>" in page


def test_records_asked_for_are_drawn_first_whatever_they_look_like(results, tmp_path):
    for file in (results / "contigs.tsv", results / "prediction_results.txt"):
        file.write_text(
            file.read_text().replace("b\t600", "null\t600").replace("b_chunk", "null_chunk")
        )
    plot("results", "--records", "null", "a<b>", "null", "--top", "0", "--longest", "0")
    page = (tmp_path / "results.pictures/index.html").read_text()
    order = re.findall(r'<figure id="([^"]+)">', page)
    assert order == ["scores", "calls_by_length", "record_null", A, "phases"]
    plot("results", "--top", "1", "--longest=0")
    assert drawn(tmp_path / "results.pictures") == set(MADE) - {B}


def test_embeddings_of_results_are_drawn_by_their_scores(results, tmp_path, write_embeddings):
    ids = ["b_chunk_1F2", "a<b>_chunk_2R1", "a<b>_chunk_1F1"]
    write_embeddings(results / "esm2.h5", ids, np.eye(3, 4, dtype=np.float32))
    plot("results", "--longest", "0", "--top", "0", "--output", "out")
    assert drawn(tmp_path / "out") == {"scores", "calls_by_length", "map_esm2", "phases"}
    page = (tmp_path / "out/index.html").read_text()
    assert re.search(r"Map of 3 ORFs \(.+\), as .+ embeds them, .+, coloured by score2", page)


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
    [(_, _, alt)] = shown(page)
    assert alt.startswith("Map of 9 records (proteins), as esm2_t6 embeds them")
    assert "coloured by Length (residues)" in alt
    assert imread(tmp_path / "e.h5.pictures/map.png").shape[:2] == (1680, 1800)
    assert "9 embeddings of 4 numbers." in page
    (tmp_path / "t.tsv").write_text("id\tfamily\n" + "".join(f"s{i}\tf{i % 2}\n" for i in range(9)))
    plot("e.h5", "--color", "family", "--table", "t.tsv")
    again = (tmp_path / "e.h5.pictures/index.html").read_text()
    assert "coloured by family" in again
    assert shown(again) != shown(page)


def test_classifier_is_drawn_and_its_metrics_listed(write_classifier, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_classifier(tmp_path / "c")
    plot("c/")
    folder = tmp_path / "c.pictures"
    assert drawn(folder) == {"reliability", "thresholds"}
    page = (folder / "index.html").read_text()
    assert re.findall(r'<figure id="([^"]+)">', page) == ["reliability", "thresholds"]
    for name, (kind, content, alt) in zip(("reliability", "thresholds"), shown(page), strict=True):
        assert "of the held-out test part" in alt
        assert content == (folder / f"{name}.{kind[:3]}").read_bytes()
    first, _, folded = page.partition("<details>")
    headings = re.findall(r'<th scope="col">([^<]*)</th>', first)
    assert headings == ["Measure", "validation: ORFs", "validation: records", "test: ORFs",
                        "test: records"]  # fmt: skip
    rows = re.findall(r"<tr>(<td>.*</td>)</tr>", first)
    table = {name: cells for name, *cells in (re.findall(r"<td>([^<]*)</td>", r) for r in rows)}
    assert table["Items"] == ["60", "20", "60", "20"]
    assert table["Virus"] == ["20", "7", "20", "7"]
    assert table["F1"] == ["0.6667"] * 4
    assert table["Loss"] == ["0.4000", "", "0.4000", ""]
    assert table["ECE before calibration"][:2] == ["", ""]
    metrics = json.loads((tmp_path / "c/metrics.json").read_text())["calibration"]
    for items, cell in (("orfs", 2), ("records", 3)):
        error = metrics["expected_calibration_error"][f"{items}_after"]
        assert float(table["ECE after calibration"][cell]) == pytest.approx(error, abs=1e-4)
        brier = metrics["brier_score"][f"{items}_before"]
        assert float(table["Brier score before calibration"][cell]) == pytest.approx(
            brier, abs=1e-4
        )
    for part in ("The classifier of epoch 7, trained on 60 ORFs of 20 records.",
                 "of the held-out part test: 60 ORFs of 20 records."):  # fmt: skip
        assert part in first
    for part in (
        *("<td>20 ORFs of 7 records</td>", "<td>3.0000</td>", "<td>3,328</td>"),
        *("prevalence of virus, ORFs</th><td>0.3500", "Bins of records after calibration"),
    ):
        assert part in folded
    assert 'class="warning"' not in page
    assert not re.search(r"https?:", page)


def test_classifier_measured_by_what_it_was_chosen_by_warns(
    write_classifier, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write_classifier(tmp_path / "c", part="validation")
    plot("c", "--output", "o")
    page = (tmp_path / "o/index.html").read_text()
    assert "These figures are of the validation records, by which the best epoch was chosen" in page


def test_classifier_that_fit_has_trained_is_drawn(
    write_embeddings, tmp_path, monkeypatch, capfd, request
):
    monkeypatch.chdir(tmp_path)
    request.addfinalizer(lambda: torch.use_deterministic_algorithms(False))  # as fit leaves it
    draw = np.random.default_rng(0)
    words = []
    for name, mean in (("viral", 1.0), ("other", -1.0)):
        ids = [f"{name}{r}_chunk_{c + 1}F2" for r in range(12) for c in range(r % 3 + 1)]
        for kind in ("dnabert_s", "esm2"):
            vectors = draw.normal(mean, size=(len(ids), 4)).astype(np.float32)
            write_embeddings(tmp_path / f"{name}_{kind}.h5", ids, vectors)
            words += [f"--data.{name}.{kind}", f"{name}_{kind}.h5"]
    main([
        *("fit", "--config", "train_classifier.yaml", *words, "--trainer.max_epochs", "1"),
        *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
        *("--writer.path", "my classifier"),
    ])  # fmt: skip
    *_, command = "".join(capfd.readouterr()).strip().rpartition("virnucpro-pl ")
    assert shlex.split(command) == ["plot", "my classifier"]
    main(shlex.split(command))
    folder = tmp_path / "my classifier.pictures"
    assert drawn(folder) == {"reliability", "thresholds"}
    page = (folder / "index.html").read_text()
    assert "<h1>Classifier: my classifier</h1>" in page
    assert "of the held-out part validation:" in page


def test_pictures_are_replaced_and_stale_ones_removed(results, tmp_path):
    (tmp_path / "results.pictures").mkdir()  # an empty folder is as good as none
    plot("results")
    plot("results", "--longest", "1", "--top", "0")
    assert drawn(tmp_path / "results.pictures") == set(MADE) - {B}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["absent"], "absent: no such folder of results, classifier or embedding file"),
        (["results.run.json"], "cannot be read as HDF5"),
        ([".", "--output", "o"], "holds no results"),
        (["results", "--longest", "-1"], "--longest must be at least 0"),
        (["results", "--top", "-1"], "--top must be at least 0, not -1"),
        (["results", "--records", "b", "x", "--top", "1"], "contigs.tsv has no record x"),
        (["results", "--records"], "--records has no value"),
        (["e.h5", "--records", "s0"], "--records is for a folder of results, which e.h5 is not"),
        (["e.h5", "--top", "3"], "--top is for a folder of results, which e.h5 is not"),
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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--top", "6"], "--top is for a folder of results, which c is not"),
        (["--longest", "0"], "--longest is for a folder of results, which c is not"),
        (["--records", "r"], "--records is for a folder of results, which c is not"),
        (["--color", "length"], "--color is for results or an embedding file, which c is not"),
        (["--color", "x"], "--color is for results or an embedding file, which c is not"),
        (["--table", "t.tsv"], "--table is for results or an embedding file, which c is not"),
        (["--output", "c"], "c is an input of this run"),
    ],
)
def test_options_that_say_nothing_of_a_classifier_are_refused(
    write_classifier, tmp_path, monkeypatch, capfd, words, message
):
    monkeypatch.chdir(tmp_path)
    write_classifier(tmp_path / "c")
    with pytest.raises(SystemExit) as ended:
        plot("c", *words)
    said = "".join(capfd.readouterr())
    assert (ended.value.code, "Traceback" in said) == (2, False), said
    assert message in said
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize(
    ("name", "content"),
    [("calibration.tsv", None), ("metrics.json", None), ("metrics.json", "{}"),
     ("thresholds.tsv", ""), ("thresholds.tsv", "of\tthreshold\n")],
)  # fmt: skip
def test_damaged_classifier_exits_2_with_a_message(
    write_classifier, tmp_path, monkeypatch, capfd, name, content
):
    monkeypatch.chdir(tmp_path)
    folder = write_classifier(tmp_path / "c")
    (folder / "best.ckpt").touch()
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(SystemExit) as ended:
        plot("c")
    said = "".join(capfd.readouterr())
    assert (ended.value.code, "Traceback" in said, said.count("\n")) == (2, False, 1), said
    assert name in said
    assert not (tmp_path / "c.pictures").exists()


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
