"""The command `evaluate`: its figures beside scikit-learn's, what it names, and what it refuses."""

import csv
import gzip
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from sklearn import metrics as sklearn
from sklearn.calibration import calibration_curve

from virnucpro_pl.cli.main import main
from virnucpro_pl.output.tables import CONTIGS_HEADER

COLUMNS = CONTIGS_HEADER.split("\t")
WIDTH = len(COLUMNS)
CLASSES = {"<500": (0, 500), "500-999": (500, 1000), "1000-2999": (1000, 3000),
           "3000-9999": (3000, 10000), ">=10000": (10000, 10**9)}  # fmt: skip


def random_rows(seed, calibrated):
    """Rows and their truth: some without a score, lengths of every class, ids of many a letter."""
    random = np.random.default_rng(seed)
    rows, truth = [], {}
    for place in range(600):
        virus = random.random() < 0.3
        length = int(np.exp(random.uniform(np.log(50), np.log(40_000))))
        score = np.float32(np.clip(random.normal(0.4 + 0.25 * virus, 0.2), 0, 1))
        if random.random() < 0.2:
            score = np.float32(np.round(score, 2))  # on a threshold
        call = "viral" if score > 0.6 else "others" if score < 0.4 else "ambiguous"
        row = dict(seq_name=f"k141_{place}|ü", length=length, status="ok", virus_score=score)
        row |= {"prediction": "virus" if score >= np.float32(0.55) else "others", "call": call}
        row["tier"] = "review" if call == "ambiguous" else str(random.choice(["high", "low"]))
        probability = float(f"{score**2:.7g}")
        row |= {"virus_probability": probability, "fdr": float(f"{(1 - probability) ** 3:.6g}")}
        if random.random() < 0.15:
            unscored = ("prediction", "virus_score", "call", "tier", "virus_probability", "fdr")
            row |= dict.fromkeys(unscored, "NA") | {"status": "no_orf"}
        if not calibrated:
            row |= {"virus_probability": "NA", "fdr": "NA"}
        rows.append(row)
        truth[row["seq_name"]] = int(virus)
    return rows, truth


def write_contigs(path, rows, columns=COLUMNS):
    lines = ["\t".join(str(row.get(name, 0)) for name in columns) for row in rows]
    text = "".join(f"{line}\n" for line in ("\t".join(columns), *lines))
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_truth(path, truth, words=("others", "virus")):
    lines = [f"{name}\t{words[label]}\n" for name, label in truth.items()]
    path.write_text("seq_name\tlabel\n" + "".join(lines), encoding="utf-8")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the command in a folder; its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        code = 0
        try:
            main(["evaluate", *map(str, words)])
        except SystemExit as ended:
            code = ended.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def small(tmp_path):
    """Six records of which everything can be worked out by hand, and five labels."""
    scores = {"a": 0.9, "b": 0.8, "c": 0.3, "d": 0.6, "e": "NA", "f": 0.1}
    unknown = dict.fromkeys(("call", "tier", "virus_probability", "fdr"), "NA")
    rows = [
        dict(seq_name=name, length=600, virus_score=score, status="ok", **unknown)
        | {"prediction": "NA" if score == "NA" else "virus" if score >= 0.5 else "others"}
        for name, score in scores.items()
    ]
    write_contigs(tmp_path / "results" / "contigs.tsv", rows)
    write_truth(tmp_path / "labels.tsv", {"a": 1, "b": 0, "c": 1, "e": 1, "z": 0})
    return tmp_path


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def near(cell, wanted):
    """Compare a cell, of six digits, or a value of JSON with a number; NaN is NA or None."""
    number = np.nan if cell in ("NA", None) else float(cell)
    tolerance = 6e-6 if isinstance(cell, str) else 1e-9
    np.testing.assert_allclose(number, wanted, rtol=tolerance, atol=1e-12)


def of_calls(labels, called):
    """Figures of some records by scikit-learn, where `called` are bools."""
    others = [c for label, c in zip(labels, called, strict=True) if not label]
    figures = {
        "precision": sklearn.precision_score,
        "recall": sklearn.recall_score,
        "f1": sklearn.f1_score,
    }
    return {
        name: function(labels, called, zero_division=np.nan) if labels else np.nan
        for name, function in figures.items()
    } | {"false_positive_rate": np.mean(others) if others else np.nan}


def of_right(labels, called):
    of_both = len(set(labels)) == len(set(called)) == 2
    return {
        "accuracy": sklearn.accuracy_score(labels, called) if labels else np.nan,
        "matthews_correlation": sklearn.matthews_corrcoef(labels, called) if of_both else np.nan,
    }


def of_scores(labels, scores):
    both, any_virus = len(set(labels)) == 2, 1 in labels
    return {
        "auroc": sklearn.roc_auc_score(labels, scores) if both else np.nan,
        "average_precision": (
            sklearn.average_precision_score(labels, scores) if any_virus else np.nan
        ),
    }


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_figures_equal_scikit_learn(run, tmp_path, seed, calibrated, monkeypatch):
    monkeypatch.setattr("virnucpro_pl.evaluate.table_blocks._LINES", 101)
    rows, truth = random_rows(seed, calibrated)
    write_contigs(tmp_path / "results" / "contigs.tsv", rows)
    names = list(truth)
    labelled = {n: truth[n] for n in np.random.default_rng(seed).permutation(names)[:500].tolist()}
    write_truth(tmp_path / "labels.tsv", labelled | {"absent_1": 1, "absent_2": 0})
    code, _, err = run("results", "--truth", "labels.tsv", "--output", "out")
    assert code == 0, err
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert [content[key] for key in ("records", "labels", "measured")] == [600, 502, 500]
    assert [content[key] for key in ("without_label", "without_result")] == [100, 2]
    missing = {(row["seq_name"], row["missing_from"]) for row in read(tmp_path / "out/missing.tsv")}
    assert missing == {("absent_1", "results"), ("absent_2", "results")} | {
        (name, "truth") for name in names if name not in labelled
    }
    known = [row for row in rows if row["seq_name"] in labelled]
    by_length = {row["length"]: row for row in read(tmp_path / "out" / "by_length.tsv")}
    thresholds = read(tmp_path / "out" / "thresholds.tsv")
    assert list(by_length) == ["all", *CLASSES]
    for name, (least, end) in {"all": (0, 10**9), **CLASSES}.items():
        part = [row for row in known if least <= row["length"] < end]
        labels = [labelled[row["seq_name"]] for row in part]
        scored = [place for place, row in enumerate(part) if row["virus_score"] != "NA"]
        of_scored = [labels[place] for place in scored]
        scores = [part[place]["virus_score"] for place in scored]
        called = [part[place]["prediction"] == "virus" for place in scored]
        of_all = [row["prediction"] == "virus" for row in part]
        line, entry = by_length[name], content["by_length"][name]
        assert int(line["records"]) == entry["records"] == len(part) > 10
        assert int(line["virus"]) == sum(labels)
        assert int(line["not_scored"]) == len(part) - len(scored) > 0
        assert int(line["virus_not_scored"]) == sum(labels) - sum(of_scored)
        wanted = of_calls(of_scored, called) | of_right(of_scored, called)
        wanted |= of_scores(of_scored, scores)
        whole = of_calls(labels, of_all) | of_right(labels, of_all)
        del whole["precision"]  # what has no score is not called: it is that of the scored
        wanted |= {f"{figure}_of_all": number for figure, number in whole.items()}
        assert set(line) == {
            "length",
            "records",
            "virus",
            "not_scored",
            "virus_not_scored",
            *wanted,
        }
        for figure, number in wanted.items():
            near(line[figure], number)
            near(entry[figure], number)
        behind = "" if name == "all" else f" {name}"
        for which, true, found in (
            ("scored", of_scored, scores),
            ("all", labels, [-1 if r["virus_score"] == "NA" else r["virus_score"] for r in part]),
        ):
            lines = [row for row in thresholds if row["of"] == f"{which}{behind}"]
            assert [row["threshold"] for row in lines] == [f"{k / 100:g}" for k in range(1, 100)]
            for row in lines[seed::9]:  # each of them is compared in test_measures.py
                reached = [score >= np.float32(row["threshold"]) for score in found]
                for figure, number in of_calls(true, reached).items():
                    near(row[figure], number)
    check_tiers(tmp_path / "out" / "tiers.tsv", known, labelled)
    if calibrated:
        check_calibration(tmp_path / "out", content, known, labelled)
    else:
        assert content["calibration"] is None
        assert not (tmp_path / "out" / "calibration.tsv").exists()
        assert not (tmp_path / "out" / "fdr.tsv").exists()


def check_tiers(table, rows, labels):
    lines = {(row["call"], row["tier"]): row for row in read(table)}
    assert sum(int(row["n"]) for row in lines.values()) == len(rows)
    for (call, tier), line in lines.items():
        truth = [labels[r["seq_name"]] for r in rows if (r["call"], r["tier"]) == (call, tier)]
        assert (int(line["n"]), int(line["n_virus"])) == (len(truth), sum(truth))
        right = {"viral": np.mean(truth), "others": 1 - np.mean(truth)}
        near(line["right"], right.get(call, np.nan))


def check_calibration(folder, content, rows, labels):
    scored = [row for row in rows if row["virus_probability"] != "NA"]
    truth = np.array([labels[row["seq_name"]] for row in scored])
    claimed = np.array([row["virus_probability"] for row in scored])
    observed, means = calibration_curve(truth, claimed, n_bins=10)
    *bins, whole = read(folder / "calibration.tsv")
    filled = [row for row in bins if row["n"] != "0"]
    np.testing.assert_allclose([float(row["observed"]) for row in filled], observed, rtol=1e-5)
    np.testing.assert_allclose([float(row["mean_probability"]) for row in filled], means, rtol=1e-5)
    near(whole["brier_score"], sklearn.brier_score_loss(truth, claimed))
    near(content["calibration"]["brier_score"], sklearn.brier_score_loss(truth, claimed))
    sizes = np.array([int(row["n"]) for row in filled])
    error = (sizes * np.abs(means - observed)).sum() / len(truth)
    near(content["calibration"]["expected_calibration_error"], error)
    near(whole["calibration_error"], error)
    rates = np.array([row["fdr"] for row in scored])
    for line, level in zip(read(folder / "fdr.tsv"), (0.01, 0.05, 0.1), strict=True):
        called = rates <= level
        assert (float(line["level"]), int(line["n"])) == (level, called.sum())
        assert called.any()
        near(line["claimed"], np.mean(1 - claimed[called]))
        near(line["observed"], np.mean(truth[called] == 0))


def test_summary_says_what_was_measured_and_names_what_was_not(run, small):
    code, out, err = run("results", "--truth", "labels.tsv")
    assert code == 0, err
    for part in (
        "Results: results/contigs.tsv (6 records)",
        "Truth: labels.tsv (5 labels)",
        "Measured: 4 records with both: 3 virus, 1 others",
        "Without a label, not measured: 2: d, f\n",
        "With a label, but not in the results: 1: z\n",
        "│ predicted virus  │     1 │      1 │",
        "│ predicted others │     1 │      0 │",
        "│ not scored       │     1 │      0 │",
        "a virus without a score is missed",
        "No virus_probability",
    ):
        assert part in out
    [recall] = [line.split("│") for line in out.splitlines() if line.startswith("│ recall  ")]
    [of_all] = [line.split("│") for line in out.splitlines() if line.startswith("│ recall of all ")]
    assert (recall[2].strip(), of_all[2].strip()) == ("0.5000", "0.3333")
    assert not list(small.glob("out*"))


def test_more_than_twenty_are_counted_on_screen_and_all_in_the_folder(run, small):
    truth = {"a": 1} | {f"absent_{place}": 0 for place in range(25)}
    write_truth(small / "labels.tsv", truth)
    code, out, _ = run("results", "--truth", "labels.tsv", "--output", "out")
    assert code == 0
    [line] = [line for line in out.splitlines() if line.startswith("With a label")]
    assert "absent_19 and 5 more" in line
    assert "absent_20" not in line
    assert len(read(small / "out" / "missing.tsv")) == 25 + 5


@pytest.mark.parametrize(
    "words", [("others", "virus"), ("0", "1"), ("False", "TRUE"), ("Others", "Virus")]
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("packed", [True, False])
def test_labels_of_each_word_line_end_and_packing_are_read(run, small, words, end, packed):
    lines = ["note\tlabel\tseq_name", f"x\t{words[1]}\ta", f"\t{words[0]}\tb"]
    data = b"\xef\xbb\xbf" + end.join(lines).encode()  # as a spreadsheet saves it, without an end
    (small / "truth").write_bytes(gzip.compress(data) if packed else data)
    code, out, err = run("results/contigs.tsv", "--truth", "truth")
    assert code == 0, err
    assert "Measured: 2 records with both: 1 virus, 1 others" in out


def test_results_with_other_line_ends_give_the_same(run, small):
    table = small / "results" / "contigs.tsv"
    before = run("results", "--truth", "labels.tsv")[1]
    table.write_bytes(table.read_bytes().replace(b"\n", b"\r\n"))
    assert run("results", "--truth", "labels.tsv")[:2] == (0, before)


def test_labels_come_through_a_pipe(small):
    words = [sys.executable, "-m", "virnucpro_pl", "evaluate", "results", "--truth", "/dev/stdin"]
    labels = (small / "labels.tsv").read_bytes()
    ended = subprocess.run(words, cwd=small, input=labels, capture_output=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert b"Measured: 4 records" in ended.stdout


def test_older_results_without_calls_are_measured(run, small):
    rows = [dict(seq_name="a", length=1, prediction="virus", virus_score=0.5)]
    write_contigs(small / "old.tsv", rows, ["virus_score", "seq_name", "length", "prediction"])
    code, out, err = run("old.tsv", "--truth", "labels.tsv", "--output", "out")
    assert code == 0, err
    assert "Calls and tiers" not in out
    assert not (small / "out" / "tiers.tsv").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: no header; the table begins with seq_name, label"),
        ("seq_name\tkind\na\tvirus\n", "line 1: no column label; the columns, parted by tabs, are"),
        ("seq_name,label\na,virus\n", "line 1: no column seq_name, label"),
        ("seq_name\tlabel\tlabel\n", "line 1: column label is there twice"),
        ("seq_name\tlabel\na\tvirus\nb\n", "line 3: 1 column(s), but the header has 2"),
        ("seq_name\tlabel\na\tvirus\t\n", "line 2: 3 column(s), but the header has 2"),
        ("seq_name\tlabel\na\tvirus\n\nb\tvirus\n", "line 3: 1 column(s), but the header has 2"),
        (
            "seq_name\tlabel\na\tphage\n",
            "line 2: 'phage' in column label is not one of virus, viral, 1, true, others, 0, false",
        ),
        ("seq_name\tlabel\n\tvirus\n", "line 2: there is no seq_name"),
        (b"seq_name\tlabel\na\tvirus\n\xff\tvirus\n", "line 3: no UTF-8 text"),
        ("seq_name\tlabel\na\tvirus\na\tvirus\n", "has 1 id(s) more than once: a"),
        (gzip.compress(b"seq_name\tlabel\na\tvirus\n" * 99)[:-9], "cannot be read: "),
        ("seq_name\tlabel\n", "labels.tsv has no record"),
        (
            "seq_name\tlabel\nx\tvirus\ny\tvirus\n",
            "No record has both a row and a label: results/contigs.tsv has a, b, c; labels.tsv has "
            "x, y",
        ),
    ],
)
def test_damaged_labels_are_refused_with_their_line(run, small, text, message):
    (small / "labels.tsv").write_bytes(text.encode() if isinstance(text, str) else text)
    code, out, err = run("results", "--truth", "labels.tsv", "--output", "out")
    assert (code, out) == (2, "")
    assert "labels.tsv" in err
    assert message in err
    assert "Traceback" not in err
    assert not (small / "out").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("virus_score", "score", "line 1: no column virus_score"),
        ("0.9", "high", "line 2: 'high' in column virus_score is not a number from 0 to 1, or NA"),
        ("0.9", "1.9", "line 2: '1.9' in column virus_score is not a number from 0 to 1, or NA"),
        ("0.9", "nan", "line 2: 'nan' in column virus_score is not a number from 0 to 1, or NA"),
        ("0.3", "NA", "line 4: virus_score and prediction are NA together or not at all"),
        ("600", "-600", "line 2: '-600' in column length is not a number of bases"),
        ("600", "9" * 30, "in column length is not a number of bases"),
        (
            "\tothers\t",
            "\tother\t",
            "line 4: 'other' in column prediction is not one of others, virus, NA",
        ),
        ("ok\t0\tNA", "ok\t0\tvirus", "line 2: 'virus' in column call is not one of viral, others"),
        ("b\t600\t", "b\t600", f"line 3: {WIDTH - 1} column(s), but the header has {WIDTH}"),
        ("\tNA\t0\n", "\tNA\t0", f"line 2: {2 * WIDTH - 1} column(s), but the header has {WIDTH}"),
        ("b\t600", "a\t600", "has 1 id(s) more than once: a"),
    ],
)
def test_damaged_results_are_refused_with_their_line(run, small, old, new, message):
    table = small / "results" / "contigs.tsv"
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new, 1))
    code, out, err = run("results", "--truth", "labels.tsv")
    assert (code, out) == (2, "")
    assert "results/contigs.tsv" in err
    assert message in err
    assert "Traceback" not in err


def test_results_that_were_cut_off_in_their_last_cell_are_refused(run, small):
    table = small / "results" / "contigs.tsv"
    table.write_text(table.read_text()[:-1])
    code, _, err = run("results", "--truth", "labels.tsv")
    assert code == 2
    assert "results/contigs.tsv, line 7: the table was cut off here" in err


def test_words_that_cannot_be_followed_are_refused(run, small):
    (small / "classified").mkdir()
    for words, message in (
        (("results",), "--truth"),
        (("nowhere", "--truth", "labels.tsv"), "nowhere: no such folder of results or table"),
        (("classified", "--truth", "labels.tsv"), "classified has no contigs.tsv"),
        (("results", "--truth", "nothing.tsv"), "--truth nothing.tsv: no such file"),
        (("results", "--truth", "."), "cannot be read"),
    ):
        code, out, err = run(*words)
        assert (code, out) == (2, ""), words
        assert message in err
        assert "Traceback" not in err


def test_folder_is_replaced_only_if_it_is_an_evaluation(run, small):
    words = ("results", "--truth", "labels.tsv", "--output")
    (small / "out").mkdir()
    assert run(*words, "out")[0] == 0  # an empty one
    (small / "out" / "fdr.tsv").write_text("of an evaluation that knew more\n")
    assert run(*words, "out")[0] == 0
    assert not (small / "out" / "fdr.tsv").exists()
    assert not list((small / "out").glob(".tmp*"))
    (small / "other").mkdir()
    (small / "other" / "thresholds.tsv").write_text("my own\n")
    (small / "more").mkdir()
    (small / "more" / "notes.txt").write_text("my own\n")
    (small / "linked").mkdir()
    os.link(small / "labels.tsv", small / "linked" / "missing.tsv")
    for folder, message in (
        ("other", "holds no evaluation.json of this command"),
        ("more", "holds more than an evaluation: notes.txt"),
        ("labels.tsv", "is an input of this run"),
        ("linked", "is an input of this run"),
        ("results", "is an input of this run"),
        (".", "holds an input of this run"),
        ("results/evaluation", "lies in the results"),
    ):
        before = {path: path.stat().st_mtime_ns for path in small.rglob("*")}
        code, _, err = run(*words, folder)
        assert code == 2
        assert message in err
        assert before == {path: path.stat().st_mtime_ns for path in small.rglob("*")}


def test_folder_that_cannot_be_written_after_all_keeps_the_earlier_evaluation(
    run, small, monkeypatch
):
    words = ("results", "--truth", "labels.tsv", "--output", "out")
    assert run(*words)[0] == 0
    before = {path.name: path.read_bytes() for path in (small / "out").iterdir()}
    write_truth(small / "labels.tsv", {"a": 0})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("virnucpro_pl.output.atomic_files.os.fsync", full)
    code, _, err = run(*words)
    assert code == 1
    assert "out cannot be written: [Errno 28] No space left on device" in err
    assert before == {path.name: path.read_bytes() for path in (small / "out").iterdir()}


def test_command_answers_without_torch(small):
    code = (
        "import sys; from virnucpro_pl.cli.main import main\n"
        "main(['evaluate', 'results', '--truth', 'labels.tsv'])\n"
        "print({'torch', 'lightning', 'sklearn'} & sys.modules.keys())"
    )
    words = [sys.executable, "-c", code]
    ended = subprocess.run(words, cwd=small, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "set()"
