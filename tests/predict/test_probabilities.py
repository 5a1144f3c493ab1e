"""Probabilities and false discovery rates of records through the command line."""

import json
import re

import numpy as np
import pytest
import torch

from virnucpro_pl.calibration import Calibration, logit
from virnucpro_pl.models.classifier import save_classifier

KNOWN = Calibration(
    temperature=0.1,
    loss_log_odds=0.0,
    record_centre=11.5,
    record_slope=2.0,
    record_growth=0.5,
    prevalence=0.25,
)
CODONS = ["GCC", "AAC", "GGC", "CTG", "ACC", "GCA", "CAG"]  # few stops in any frame


@pytest.fixture
def words(plain_dnabert_s, weights_file, seeded_classifier, tmp_path):
    """Words of a run over twelve records, one without an ORF, with a calibrated checkpoint."""
    generator = np.random.default_rng(3)
    records = ["".join(generator.choice(CODONS, n)) for n in range(60, 900, 75)]
    records[4] = "TAATTAATTAA" * 9
    fasta = tmp_path / "in.fna"
    fasta.write_text("".join(f">r{i}\n{letters}\n" for i, letters in enumerate(records)))
    dnabert = plain_dnabert_s(4).save(tmp_path / "dnabert")
    weights = seeded_classifier(48 + 32, 16)
    torch.save(weights, tmp_path / "uncalibrated.pt")
    options = {
        "calibration": KNOWN,
        "chunk_length": 500,
        "embedders": {},
        "options": {},
        "epoch": 1,
    }
    save_classifier(tmp_path / "calibrated.ckpt", weights, **options)
    return [
        *("--config", "virnucpro.yaml", "--data.path", fasta, "--data.num_workers", 0),
        *("--data.tokens_per_batch", 600, "--trainer.precision", 32),
        *("--model.esm2.weights", weights_file, "--model.dnabert_s.weights", dnabert),
        *("--model.classifier", "calibrated.ckpt"),
    ]


def table(path):
    header, *rows = [line.split("\t") for line in path.read_text().splitlines()]
    return [dict(zip(header, row, strict=True)) for row in rows]


def expected_log_odds(folder):
    """The records' log-odds by hand, from prediction_results.txt."""
    best = {}
    for row in table(folder / "prediction_results.txt"):
        record, chunk = re.fullmatch(r"(.+)_chunk_(\d+)[FR][123]", row["Sequence_ID"]).groups()
        log_odds = float(np.log(float(row["score2"])) - np.log(float(row["score1"])))
        key = record, chunk
        best[key] = max(best.get(key, -np.inf), log_odds)
    expected = {}
    for record in {record for record, _ in best}:
        chunks = [value for (owner, _), value in best.items() if owner == record]
        mean = np.mean(chunks) / KNOWN.temperature
        slope = KNOWN.record_slope * len(chunks) ** KNOWN.record_growth
        expected[record] = logit(KNOWN.prevalence) + slope * (mean - KNOWN.record_centre)
    return expected


@pytest.mark.parametrize("prevalence", [None, 0.01])
def test_probability_and_fdr_are_those_of_the_formulas(run_main, words, tmp_path, prevalence):
    more = () if prevalence is None else ("--writer.prevalence", prevalence)
    ended = run_main(*words, *more, "--writer.path", "calls")
    assert ended.code == 0, ended.log
    rows = {row["seq_name"]: row for row in table(tmp_path / "calls/contigs.tsv")}
    assert (rows["r4"]["virus_probability"], rows["r4"]["fdr"]) == ("NA", "NA")
    expected = expected_log_odds(tmp_path / "calls")
    assert expected.keys() == rows.keys() - {"r4"}
    shift = 0 if prevalence is None else logit(prevalence) - logit(KNOWN.prevalence)
    probabilities = {name: 1 / (1 + np.exp(-value - shift)) for name, value in expected.items()}
    assert min(probabilities.values()) + 0.2 < max(probabilities.values()) < 0.9999
    ordered = sorted(probabilities, key=probabilities.get, reverse=True)
    for place, name in enumerate(ordered, 1):
        told = rows[name]
        assert float(told["virus_probability"]) == pytest.approx(probabilities[name], rel=1e-3)
        rate = np.mean([1 - probabilities[above] for above in ordered[:place]])
        assert float(told["fdr"]) == pytest.approx(rate, rel=1e-3)
        assert told["prediction"] == ("virus" if float(told["virus_score"]) >= 0.5 else "others")


def test_max_fdr_decides_in_place_of_the_threshold(run_main, words, tmp_path):
    assert run_main(*words, "--writer.path", "all").code == 0
    rates = [row["fdr"] for row in table(tmp_path / "all/contigs.tsv")]
    middle = sorted(float(rate) for rate in rates if rate != "NA")[5]
    ended = run_main(*words, "--writer.path", "calls", "--writer.max_fdr", middle + 1e-5)
    assert ended.code == 0, ended.log
    rows = table(tmp_path / "calls/contigs.tsv")
    called = {row["seq_name"] for row in rows if row["prediction"] == "virus"}
    assert len(called) == 6
    others = {row["seq_name"] for row in rows if row["prediction"] == "others"}
    assert called | others == {row["seq_name"] for row in rows} - {"r4"}
    fasta = (tmp_path / "calls/virus.fasta").read_text()
    assert {line[1:] for line in fasta.splitlines() if line.startswith(">")} == called
    summary = json.loads((tmp_path / "calls/summary.json").read_text())
    assert summary["records_by_prediction"] == {"virus": 6, "others": 5, "NA": 1}
    assert (summary["threshold"], summary["max_fdr"]) == (None, middle + 1e-5)


@pytest.mark.parametrize("classifier", ["uncalibrated.pt", "random"])
def test_without_a_calibration_both_columns_are_na(run_main, words, tmp_path, classifier):
    ended = run_main(*words, "--model.classifier", classifier, "--writer.path", "calls")
    assert ended.code == 0, ended.log
    for row in table(tmp_path / "calls/contigs.tsv"):
        assert (row["virus_probability"], row["fdr"]) == ("NA", "NA")


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("option", ["--writer.max_fdr", "--writer.prevalence"])
def test_options_that_need_a_calibration_are_refused_without_one(
    start, words, tmp_path, option, ranks
):
    more = ("--trainer.devices", ranks, *(("--trainer.strategy", "ddp") if ranks > 1 else ()))
    ended = start(
        *("predict", *words, "--trainer.accelerator", "cpu", *more, option, 0.1),
        *("--model.classifier", "uncalibrated.pt", "--writer.path", "calls"),
    ).wait(60)
    assert (ended.code, "Traceback" in ended.log) == (2, False), ended.log
    message = f"{option} needs a classifier that knows what its scores mean, and uncalibrated.pt"
    assert ended.log.count(message) == 1
    assert not (tmp_path / "calls").exists()
    assert not (tmp_path / "calls.parts").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--writer.max_fdr", 1.5), "--writer.max_fdr is a rate, a number from 0 to 1, not 1.5"),
        (("--writer.prevalence", 0), "--writer.prevalence is a share between 0 and 1, not 0"),
        (
            ("--writer.max_fdr", 0.1, "--writer.threshold", 0.9),
            "--writer.max_fdr takes the place of --writer.threshold: give one of both",
        ),
    ],
)
def test_bad_values_exit_2(run_main, words, tmp_path, more, message):
    ended = run_main(*words, "--writer.path", "calls", *more)
    assert (ended.code, "Traceback" in ended.log) == (2, False), ended.log
    assert message in ended.log


def test_embeddings_that_exist_have_no_records_to_rate(run_main, words, tmp_path):
    made = run_main(*words, "--writer.path", "calls", "--writer.save_embeddings", "true")
    assert made.code == 0, made.log
    ended = run_main(
        *("--config", "classify.yaml", "--data.dnabert_s", "calls/dnabert_s.h5"),
        *("--data.esm2", "calls/esm2.h5", "--model.classifier", "calibrated.ckpt"),
        *("--data.num_workers", 0, "--writer.path", "again", "--writer.max_fdr", 0.1),
    )
    assert ended.code == 2, ended.log
    assert "--writer.max_fdr is not for VirusClassifier: it is about records" in ended.log


def test_damaged_calibration_is_refused(run_main, words, tmp_path):
    content = torch.load(tmp_path / "calibrated.ckpt", weights_only=True)
    content["calibration"]["temperature"] = -1.0
    torch.save(content, tmp_path / "damaged.ckpt")
    ended = run_main(*words, "--model.classifier", "damaged.ckpt", "--writer.path", "calls")
    assert (ended.code, "Traceback" in ended.log) == (2, False), ended.log
    assert "damaged.ckpt is no classifier: in its calibration some numbers are out of" in ended.log
