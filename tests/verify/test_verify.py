"""The command `verify`: both runs, what it refuses, exit codes, ranks, and nothing left behind."""

import gc
import json
import sys
import tempfile
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from virnucpro_pl.cli import verify as command
from virnucpro_pl.cli.main import main
from virnucpro_pl.cli.shipped import find_config
from virnucpro_pl.embeddings.embedding_file import load_embeddings
from virnucpro_pl.input.protein_tokens import ProteinTokenizer
from virnucpro_pl.models import dnabert_s_files, esm2, esm2_files
from virnucpro_pl.predict.virnucpro import VirNucPro
from virnucpro_pl.verify.reference import CONTIGS, load_reference


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """The folder for temporary files, of this process and of those that it starts."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


@pytest.fixture
def run_verify(run_main, monkeypatch):
    """Run `verify` in this process on a CPU."""
    monkeypatch.setattr(sys, "argv", ["virnucpro-pl"])

    def run(*words):
        return run_main(*words, command="verify")

    return run


@pytest.fixture(scope="module")
def dnabert_folder(plain_dnabert_s, tmp_path_factory):
    return plain_dnabert_s(4).save(tmp_path_factory.mktemp("weights") / "dnabert")


@pytest.fixture(scope="module")
def classifier_file(save_classifier, tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("weights") / "c.pth", 48 + 32, 16)


@pytest.fixture
def models(weights_file, dnabert_folder):
    """Options of small encoders."""
    return [
        *("--model.esm2.weights", weights_file, "--model.dnabert_s.weights", dnabert_folder),
        *("--data.num_workers", 0),
    ]


@pytest.fixture
def small_reference(run_main, models, classifier_file, tmp_path, monkeypatch, bf16_units):
    """What the small networks give in FP32, in place of what the published ones do."""
    ended = run_main(
        CONTIGS, "-o", "known", "--classifier", classifier_file, "--trainer.precision", 32,
        "--writer.save_embeddings", "true", *models,
    )  # fmt: skip
    assert ended.code == 0, ended.log
    table = (tmp_path / "known" / "prediction_results.txt").read_text().splitlines()[1:]
    with load_embeddings(tmp_path / "known" / "esm2.h5") as file:
        esm2_vectors, name = file[:], file.attributes["model"]
    with load_embeddings(tmp_path / "known" / "dnabert_s.h5") as file:
        dnabert_s_vectors = file[:]
    known = load_reference()._replace(
        esm2=esm2_vectors,
        esm2_name=name,
        dnabert_s=dnabert_s_vectors,
        scores=np.array([line.split("\t")[2:] for line in table], np.float32),
        labels=[line.split("\t")[1] for line in table],
    )
    monkeypatch.setattr(command, "load_reference", lambda: known)
    return known


def lines_of(log, word):
    rows = (line for line in log.splitlines() if line.startswith("│"))
    return [row for row in rows if f" {word} " in row]


def test_numbers_of_the_reference_are_met_in_both_precisions(
    run_verify, models, classifier_file, small_reference, temporary
):
    ended = run_verify("--classifier", classifier_file, *models)
    assert ended.code == 0, ended.log
    assert len(lines_of(ended.log, "met")) == 14
    assert len(lines_of(ended.log, "bf16-mixed")) == len(lines_of(ended.log, "32-true")) == 7
    assert "within its limits" in ended.log
    assert "Look at it with" not in ended.log
    assert not list(temporary.iterdir())


def test_fp32_is_run_once_where_it_is_asked_for(
    run_verify, models, classifier_file, small_reference, monkeypatch
):
    monkeypatch.setenv("VIRNUCPRO_DISABLE_FP16", "1")
    ended = run_verify("--classifier", classifier_file, *models)
    assert ended.code == 0, ended.log
    assert len(lines_of(ended.log, "met")) == 7
    assert ended.log.count("Loaded ") == 2


def test_weights_of_the_first_run_are_gone_in_the_second(
    run_verify, models, small_reference, monkeypatch
):
    alive, seen = [], []

    def configure(self):
        gc.collect()
        seen.append([known() is not None for known in alive])
        plain(self)
        alive.append(weakref.ref(self.esm2.encoder))

    plain = VirNucPro.configure_model
    monkeypatch.setattr(VirNucPro, "configure_model", configure)
    ended = run_verify(*models)
    assert ended.code == 0, ended.log
    assert seen == [[], [False]]


def test_another_classifier_is_told_from_other_encoders(
    run_verify, models, classifier_file, small_reference, save_classifier, tmp_path
):
    def turn(module):
        module.output_layer.weight.data.neg_()

    other = save_classifier(tmp_path / "other.pth", 48 + 32, 16, edit=turn)
    ended = run_verify("--classifier", other, *models)
    assert ended.code == 1, ended.log
    assert "another classifier than 500_model.pth" in ended.log
    ended = run_verify("--classifier", classifier_file, *models, "--model.esm2.layer", 2)
    assert ended.code == 1, ended.log
    assert "The vectors of ESM-2 differ, in FP32 too" in ended.log


def test_without_a_classifier_the_scores_are_left_out(run_verify, models, small_reference):
    ended = run_verify(*models)
    assert ended.code == 0, ended.log
    assert "Not compared: scores, labels" in ended.log


def test_classifier_of_a_config_is_the_one_that_is_run(run_verify, models, tmp_path):
    config = yaml.safe_load(Path(find_config("virnucpro.yaml")).read_text())
    config["model"]["init_args"]["classifier"] = "absent.pth"
    config["data"]["init_args"]["path"] = "absent.fa"
    config["writer"]["init_args"] = {"path": "results"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    ended = run_verify("--config", "mine.yaml", *models)
    assert ended.code == 2, ended.log
    assert "absent.pth: no such classifier" in ended.log
    assert not (tmp_path / "results").exists()


def test_numbers_that_are_not_finite_exit_3(
    run_verify, models, reference, save_published, temporary, tmp_path
):
    state = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    tokens, _ = ProteinTokenizer().encode([b"A"])
    state["embed_tokens.weight"][tokens[1]] = torch.nan
    poisoned = save_published(state, tmp_path / "poisoned.pt")
    ended = run_verify(*models, "--model.esm2.weights", poisoned)
    assert ended.code == 3, ended.log
    assert load_reference().ids[0] in ended.log
    assert not list(temporary.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.path", "x.fa"], "leave out --data.path"),
        (["x.fa"], "for which a word that is no option stands"),
        (["-o", "results"], "leave out --writer.path"),
        (["--writer.init_args.path=results"], "leave out --writer.path"),
        (["--data.length", "300"], "whole chunks of 500 bases"),
        (["--data.max_length", "100"], "nor with --data.max_length"),
        (["--data.max_chunks", "1"], "or --data.max_chunks"),
        (["--trainer.num_nodes", "2"], "verify runs on one node"),
        (["--trainer.device", "2"], "did you mean --trainer.devices?"),
        (["--config", "esm2.yaml"], "give virnucpro.yaml or a config like it"),
        (["--config", "classify.yaml"], "give virnucpro.yaml or a config like it"),
        (["--config", "absent.yaml"], "There is no config absent.yaml"),
        (["--classifier", "absent.pth"], "absent.pth: no such classifier"),
        (["--model.esm2.weight", "x.pt"], "did you mean --model.esm2.weights?"),
    ],
)
def test_bad_usage_exits_2_and_leaves_nothing(run_verify, models, temporary, words, message):
    given = models if "--config" not in words else []
    ended = run_verify(*words, *given)
    assert ended.code == 2, ended.log
    assert message in ended.log
    assert not list(temporary.iterdir())


def test_processes_of_torchrun_are_refused(run_verify, models, monkeypatch):
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("WORLD_SIZE", "2"), ("RANK", "0"),
                        ("LOCAL_RANK", "0"), ("GROUP_RANK", "0")):  # fmt: skip
        monkeypatch.setenv(name, value)
    ended = run_verify(*models)
    assert ended.code == 2, ended.log
    assert "without torchrun" in ended.log


@pytest.mark.parametrize("words", [["--help"], ["--config", "demo.yaml", "-h"], ["--help-all"]])
def test_help_is_one_page(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["verify", *words])
    assert not ended.value.code
    assert capsys.readouterr().out.startswith("usage: virnucpro-pl verify ")


# Processes ----------------------------------------------------------------------------------------

DEMO = ("verify", "--config", "demo.yaml", "--trainer.accelerator", "cpu")


@pytest.mark.parametrize(
    ("size", "found"), [("published", "The vectors of DNABERT-S differ"), ("tiny", "192 numbers")]
)
def test_random_weights_exit_1(start, temporary, size, found):
    running = start(*DEMO, "--model.dnabert_s.size", size)
    ended = running.wait()
    running.assert_nothing_left()
    assert ended.code == 1, ended.log
    assert found in ended.log
    assert "Not compared: ESM-2 vectors, scores, labels" in ended.log
    assert "Traceback" not in ended.log
    assert not list(temporary.iterdir())


TWO = ("--trainer.devices", 2, "--trainer.strategy", "ddp")

KNOWN = """if True:
    import shutil, sys
    import numpy as np
    from virnucpro_pl.cli import main, verify
    known = verify.load_reference()
    with np.load("known.npz") as file:
        known = known._replace(**{name: file[name] for name in file.files})
    known = known._replace(labels=known.labels.tolist(), esm2_name=str(known.esm2_name))
    verify.load_reference = lambda: known
    check = verify.check_run

    def keep(folder, precision, reference):
        shutil.copy(f"{folder}.run.json", f"{precision}.json")
        return check(folder, precision, reference)

    verify.check_run = keep
    main.main(sys.argv[1:])
"""
"""Runs the command with the numbers of small networks, and keeps the figures of its runs."""


@pytest.mark.slow
def test_two_ranks_meet_the_numbers_in_both_precisions(
    start, models, classifier_file, small_reference, temporary, tmp_path
):
    small = small_reference
    np.savez(tmp_path / "known.npz", esm2=small.esm2, dnabert_s=small.dnabert_s,
             scores=small.scores, labels=small.labels, esm2_name=small.esm2_name)  # fmt: skip
    (tmp_path / "known.py").write_text(KNOWN)
    running = start(
        "verify", "--classifier", classifier_file, *models, *TWO, "--trainer.accelerator", "cpu",
        "--trainer.precision", "bf16-true", launcher=("known.py",),
    )  # fmt: skip
    ended = running.wait(120)
    running.assert_nothing_left()
    assert ended.code == 0, ended.log
    assert len(lines_of(ended.log, "met")) == 14
    for precision in ("bf16-true", "32-true"):
        figures = json.loads((tmp_path / f"{precision}.json").read_text())
        assert [rank["records"] for rank in figures["per_rank"]] == [2, 2]
    assert not list(temporary.iterdir())


@pytest.mark.slow
def test_two_ranks_with_random_weights_exit_1_and_one_of_them_says_so(start, temporary):
    running = start(*DEMO, *TWO, "--trainer.precision", 32)  # one table on any processor
    ended = running.wait(120)
    running.assert_nothing_left()
    assert ended.code == 1, ended.log
    assert ended.log.count("The vectors of DNABERT-S differ") == 1
    assert ended.log.count("DNABERT-S vectors") == 1
    assert not list(temporary.iterdir())


@pytest.mark.slow
@pytest.mark.weights
def test_published_weights_give_the_numbers_of_the_original(start):
    file = esm2_files.published_file(esm2.DEFAULT)
    classifier = file.with_name("500_model.pth")
    for needed in (file, dnabert_s_files.cache_folder()):
        if not needed.exists():
            pytest.skip(f"needs the published weights at {needed}")
    given = ["--classifier", classifier] if classifier.exists() else []
    ended = start("verify", *given).wait(1200)
    assert ended.code == 0, ended.log
