"""Training a classifier: it learns what can be learnt, the same each time, and is used at once."""

import json
import math
import shutil

import h5py
import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Trainer, seed_everything

from virnucpro_pl import (
    ClassifierTraining,
    ClassifierWriter,
    EmbeddingPair,
    LabelledPairDataModule,
    cores,
)
from virnucpro_pl.cli.main import main
from virnucpro_pl.cli.shipped import shipped_configs
from virnucpro_pl.errors import UsageError
from virnucpro_pl.fit.training import METRIC_NAMES
from virnucpro_pl.models.classifier import load_classifier

DNA, PROTEIN = 6, 9
FILES = {"best.ckpt", "metrics.json", "calibration.tsv", "thresholds.tsv"}


@pytest.fixture(scope="module")
def sets(write_embeddings, tmp_path_factory):
    """Four files of 30 records of each class, whose means differ by two standard deviations."""
    folder = tmp_path_factory.mktemp("sets")
    draw = np.random.default_rng(0)
    words = []
    for name, mean in (("viral", 1.0), ("other", -1.0)):
        ids = [f"{name}{r}_chunk_{c + 1}F2" for r in range(30) for c in range(r % 4 + 2)]
        for kind, width in (("dnabert_s", DNA), ("esm2", PROTEIN)):
            path = folder / f"{name}_{kind}.h5"
            write_embeddings(path, ids, draw.normal(mean, size=(len(ids), width)).astype("f4"))
            words += [f"--data.{name}.{kind}", path]
    return words


@pytest.fixture
def fit(capfd, tmp_path, monkeypatch):
    """Run `fit` in this process: its exit code, and what it said."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        fixed = ("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false")
        try:
            main(["fit", "--config", "train_classifier.yaml", *map(str, words), *fixed])
            code = 0
        except SystemExit as end:
            code = end.code
        return code, "".join(capfd.readouterr())

    yield run
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("rows", [20, 128])
def test_steps_have_a_thread_for_each_64_rows(sets, fit, monkeypatch, rows):
    monkeypatch.setattr(cores, "IS_CHOSEN", False)
    before = torch.get_num_threads()
    code, said = fit(*sets, "--trainer.max_epochs", 1, "--data.batch_size", rows)
    assert code == 0, said
    threads = max(1, min(rows // 64, cores.allowed_cores(), before))
    assert f"on the CPU ({threads} thread" in said.splitlines()[0]
    assert torch.get_num_threads() == before


def test_separable_sets_are_learnt_and_the_checkpoint_is_used(sets, fit, tmp_path, capfd):
    code, said = fit(*sets, "--trainer.max_epochs", 12, "--data.test_fraction", 0.2)
    assert code == 0, said
    *_, last, look = said.strip().splitlines()
    assert look.endswith("Look at it with: virnucpro-pl plot classifier")
    assert "Wrote classifier/best.ckpt (epoch " in last
    assert "--model.classifier classifier/best.ckpt" in last
    assert "auroc " in last
    metrics = json.loads((tmp_path / "classifier/metrics.json").read_text())
    for part in ("validation", "test"):
        held_out = metrics["held_out"][part]
        assert set(held_out) == set(METRIC_NAMES)
        assert held_out["auroc"] > 0.99
        assert held_out["accuracy"] > 0.9
        assert metrics["split"][part]["virus"]["records"] == (3 if part == "validation" else 6)
    assert metrics["features"] == DNA + PROTEIN
    assert metrics["checkpoint"] == "classifier/best.ckpt"
    assert len(metrics["epochs"]) == 12
    assert yaml.safe_load(metrics["config"])["data"]["test_fraction"] == 0.2
    files = dict(zip(sets[::2], sets[1::2], strict=True))
    main([
        "predict", "--config", "classify.yaml", "--data.dnabert_s",
        str(files["--data.viral.dnabert_s"]), "--data.esm2", str(files["--data.viral.esm2"]),
        "--model.classifier", "classifier/best.ckpt", "--writer.path", "calls",
        "--trainer.accelerator", "cpu", "--data.num_workers", "0",
    ])  # fmt: skip
    table = (tmp_path / "calls/prediction_results.txt").read_text()
    labels = [line.split("\t")[1] for line in table.splitlines()[1:]]
    assert labels.count("virus") > 0.9 * len(labels)


def test_chunk_length_of_the_embeddings_is_kept_and_other_chunks_are_refused(
    sets, fit, run_main, tmp_path
):
    words = list(sets)
    for place, path in enumerate(sets[1::2]):
        words[2 * place + 1] = shutil.copy(path, tmp_path)
        with h5py.File(words[2 * place + 1], "r+") as file:
            file.attrs["chunk_length"] = 300
    code, said = fit(*words, "--trainer.max_epochs", 1)
    assert code == 0, said
    assert "--model.classifier classifier/best.ckpt --data.length 300" in said
    assert json.loads((tmp_path / "classifier/metrics.json").read_text())["chunk_length"] == 300
    assert load_classifier("classifier/best.ckpt").chunk_length == 300
    for length, expected in ((300, 0), (500, 2), (None, 0)):
        dna, esm = (tmp_path / f"{kind}_{length}.h5" for kind in ("dna", "esm"))
        for source, path in ((sets[1], dna), (sets[3], esm)):  # of the viral set
            shutil.copy(source, path)
            if length:
                with h5py.File(path, "r+") as file:
                    file.attrs["chunk_length"] = length
        ended = run_main(
            *("--config", "classify.yaml", "--data.dnabert_s", dna, "--data.esm2", esm),
            *("--data.num_workers", 0, "--model.classifier", "classifier/best.ckpt"),
            *("--writer.path", f"calls{length}"),
        )
        assert ended.code == expected, ended.log
        refused = "was trained on chunks of 300 bases, and these are of 500" in ended.log
        assert refused == bool(expected)
        assert (tmp_path / f"calls{length}").exists() == (not expected)


@pytest.mark.parametrize(
    ("esm2", "config"),
    [
        ("esm2_t33_650M_UR50D", "virnucpro_650m.yaml"),
        ("esm2_t36_3B_UR50D", "virnucpro.yaml"),
        ("esm2_t12_35M_UR50D", "virnucpro.yaml --model.esm2.name esm2_t12_35M_UR50D"),
        ("mine", "virnucpro.yaml"),
    ],
)
def test_checkpoint_knows_its_embedders_and_the_log_their_config(sets, fit, tmp_path, esm2, config):
    words = list(sets)
    for place, path in enumerate(sets[1::2]):
        words[2 * place + 1] = shutil.copy(path, tmp_path)
        with h5py.File(words[2 * place + 1], "r+") as file:
            model = esm2 if "esm2" in str(path) else "DNABERT-S"
            file.attrs.update({"model": model, "layer": 12, "precision": "32-true"})
    code, said = fit(*words, "--trainer.max_epochs", 1)
    assert code == 0, said
    assert f"predict --config {config} --model.classifier classifier/best.ckpt" in said
    assert load_classifier("classifier/best.ckpt").embedders == {
        "dnabert_s": {"model": "DNABERT-S", "layer": "12", "precision": "32-true"},
        "esm2": {"model": esm2, "layer": "12", "precision": "32-true"},
    }


def test_metrics_are_those_of_the_formulas(sets, fit, tmp_path):
    fit(*sets, "--trainer.max_epochs", 1, "--model.learning_rate", 1e-5)
    files = dict(zip(sets[::2], sets[1::2], strict=True))
    told = json.loads((tmp_path / "classifier/metrics.json").read_text())["held_out"]["validation"]
    pairs = [
        EmbeddingPair(files[f"--data.{name}.dnabert_s"], files[f"--data.{name}.esm2"])
        for name in ("viral", "other")
    ]
    torch.manual_seed(42)
    data = LabelledPairDataModule(*pairs)
    data.setup("fit")
    features, labels = data.rows[data.split.validation.tolist()]
    scores = load_classifier("classifier/best.ckpt").probabilities(features)[:, 1]
    called, true = scores > 0.5, labels == 1
    tp, fp = int((called & true).sum()), int((called & ~true).sum())
    fn, tn = int((~called & true).sum()), int((~called & ~true).sum())
    root = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    wins = (scores[true][:, None] > scores[~true]).float().mean()
    expected = {
        "accuracy": (tp + tn) / len(labels),
        "precision": tp / (tp + fp),
        "recall": tp / (tp + fn),
        "f1": 2 * tp / (2 * tp + fp + fn),
        "mcc": (tp * tn - fp * fn) / root,
        "auroc": float(wins),
    }
    for name, value in expected.items():
        assert told[name] == pytest.approx(value, abs=1e-6), name
    assert 0 < fp + fn < len(labels)  # a set in which every metric has something to tell


def test_same_seed_gives_the_same_weights_and_another_does_not(sets, fit):
    for path, seed in (("a", 7), ("b", 7), ("c", 8)):
        code, said = fit(
            *sets, "--trainer.max_epochs", 2, "--writer.path", path, "--seed_everything", seed
        )
        assert code == 0, said
    a, b, c = (load_classifier(f"{name}/best.ckpt").state_dict() for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["hidden_layer.weight"], c["hidden_layer.weight"])


def test_a_classifier_that_is_replaced_does_not_change_the_weights(sets, fit):
    words = (*sets, "--trainer.max_epochs", 1, "--writer.overwrite", "true")
    weights = []
    for _ in range(2):
        code, said = fit(*words)
        assert code == 0, said
        weights.append(load_classifier("classifier/best.ckpt").state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_one_writer_keeps_two_trainings_apart(sets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = dict(zip(sets[::2], sets[1::2], strict=True))
    pairs = [
        EmbeddingPair(files[f"--data.{name}.dnabert_s"], files[f"--data.{name}.esm2"])
        for name in ("viral", "other")
    ]
    writer = ClassifierWriter("classifier", overwrite=True)
    epochs = []
    for rate in (1e-30, 0.01):
        seed_everything(1)
        data = LabelledPairDataModule(*pairs)
        trainer = Trainer(
            logger=False, accelerator="cpu", max_epochs=3, callbacks=[writer],
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(ClassifierTraining(learning_rate=rate), data)
        data.close()
        metrics = json.loads((tmp_path / "classifier/metrics.json").read_text())
        assert len(metrics["epochs"]) == 3
        assert metrics["options"]["learning_rate"] == rate
        assert not (tmp_path / "classifier.parts").exists()
        epochs.append(load_classifier("classifier/best.ckpt").state_dict())
    name = "hidden_layer.weight"
    assert not torch.equal(epochs[0][name], epochs[1][name])


def test_score_that_is_not_finite_is_told_with_its_id(sets, fit, tmp_path):
    words = list(sets)
    words[1] = shutil.copy(sets[1], tmp_path)
    with h5py.File(words[1], "r+") as file:
        file["embeddings"][:] = 3e38
    code, said = fit(*words, "--trainer.max_epochs", 1, "--model.learning_rate", 1e-30)
    assert (code, "Traceback" in said) == (3, False) or "No checkpoint was kept" in said, said


def test_epoch_without_validation_has_no_metrics_of_one(sets, fit, tmp_path):
    more = ("--trainer.check_val_every_n_epoch", 2, "--trainer.max_epochs", 4)
    assert fit(*sets, *more)[0] == 0
    epochs = json.loads((tmp_path / "classifier/metrics.json").read_text())["epochs"]
    assert ["val_loss" in epoch for epoch in epochs] == [False, True, False, True]


@pytest.mark.parametrize("path", [".", "..", "/", "../here"])
def test_folder_without_a_name_is_refused(sets, fit, tmp_path, monkeypatch, path):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    code, said = fit(*sets, "--writer.path", path)
    assert (code, "Traceback" in said) == (2, False), said
    assert "has no name" in said or "is the current folder" in said


def test_reading_batch_by_batch_gives_the_same_weights(sets, fit):
    for path, memory in (("a", 8), ("b", 0)):
        words = ("--writer.path", path, "--data.memory_gb", memory)
        assert fit(*sets, "--trainer.max_epochs", 1, *words)[0] == 0
    a, b = (load_classifier(f"{name}/best.ckpt").state_dict() for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_other_monitor_weights_and_rare_validation_are_taken(sets, fit, tmp_path):
    words = ("--writer.monitor", "val_auroc", "--writer.mode", "max", "--trainer.max_epochs", 4)
    more = ("--trainer.check_val_every_n_epoch", 2, "--model.class_weights", "[1, 4]")
    code, said = fit(*sets, *words, *more)
    assert code == 0, said
    assert "Weights in the loss: others 1, virus 4" in said
    metrics = json.loads((tmp_path / "classifier/metrics.json").read_text())
    assert metrics["epoch"] in (1, 3)
    assert metrics["options"]["class_weights"] == [1, 4]
    best = max(epoch.get("val_auroc", 0) for epoch in metrics["epochs"])
    assert metrics["held_out"]["validation"]["auroc"] == pytest.approx(best)


def test_training_stops_early(sets, fit, tmp_path):
    words = ("--model.learning_rate", 1e-30, "--early_stopping.patience", 2)
    code, said = fit(*sets, *words, "--model.momentum", 0)
    assert code == 0, said
    metrics = json.loads((tmp_path / "classifier/metrics.json").read_text())
    # Only the running mean of the batch normalisation moves the loss.
    assert len(metrics["epochs"]) < 200
    best = min(metrics["epochs"], key=lambda epoch: epoch["val_loss"])
    assert metrics["epoch"] == best["epoch"] == len(metrics["epochs"]) - 3
    assert metrics["held_out"]["validation"]["loss"] == pytest.approx(best["val_loss"], abs=1e-6)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [("none", None), ("balanced", [0.6, 3.0]), ([1.0, 4.0], [1.0, 4.0])],
)
def test_class_weights_enter_the_loss(weights, expected):
    model = ClassifierTraining(class_weights=weights, hidden=4)
    data = LabelledPairDataModule.__new__(LabelledPairDataModule)
    data.width = 3
    data.seed = 1
    data.rows = type("Rows", (), {"labels": np.array([0, 0, 0, 0, 0, 1, 1])})
    data.split = type("Split", (), {"train": np.arange(6)})
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.datamodule = data
    model.trainer = trainer
    model.configure_model()
    if expected is None:
        assert model.loss_weights is None
    else:
        assert model.loss_weights.tolist() == pytest.approx(expected)


def test_optimizer_is_that_of_the_authors():
    model = ClassifierTraining()
    model.classifier = torch.nn.Linear(2, 2)
    [optimizer], [steps] = model.configure_optimizers()
    assert isinstance(optimizer, torch.optim.SGD)
    assert (optimizer.defaults["lr"], optimizer.defaults["momentum"]) == (2e-4, 0.9)
    rates = []
    for _ in range(21):
        rates.append(steps.get_last_lr()[0])
        optimizer.step()
        steps.step()
    assert rates[0] == rates[9] == 2e-4
    assert (rates[10], rates[20]) == (pytest.approx(1.7e-4), pytest.approx(1.445e-4))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.learning_rate", 0], "learning_rate must be above 0"),
        (["--model.dropout", 1], "dropout must be from 0 to below 1"),
        (["--model.class_weights", "[1, -1]"], "class_weights must be above 0"),
        (["--model.class_weights", "some"], "class_weights"),
        (["--data.batch_size", 1], "batch_size must be at least 2"),
        (["--data.viral.esm2", "absent.h5"], "absent.h5: no such embedding file"),
        (["--writer.path", "/proc/no"], "/proc/no cannot be written"),
        (["--writer.path", f"{__file__}/no"], "test_training.py/no cannot be written"),
        (["--model.lr", 1], "lr"),
        (["--trainer.max_epochs", 0], "No checkpoint was kept"),
        (["--trainer.limit_val_batches", 0], "without the whole validation"),
        (["--trainer.limit_val_batches", 0.5], "without the whole validation"),
        (["--trainer.limit_val_batches", 1], "without the whole validation"),
        (["--trainer.fast_dev_run", "true"], "without the whole validation"),
        (["--writer.monitor", "val_f2"], "--writer.monitor must be one of val_loss, "),
        (["--early_stopping.monitor", "loss"], "--early_stopping.monitor must be one of"),
        (["--trainer.enable_checkpointing", "false"], "enable_checkpointing"),
        (["--trainer.devices", 2], "trained by one process"),
    ],
)
def test_bad_usage_exits_2_with_a_message(sets, fit, words, message):
    code, said = fit(*sets, *words)
    assert (code, "Traceback" in said) == (2, False), said
    assert message in said


def test_unstable_training_exits_3_and_keeps_nothing(sets, fit, tmp_path):
    code, said = fit(*sets, "--model.learning_rate", 1e30)
    assert (code, "Traceback" in said) == (3, False), said
    assert "weights are no longer finite. Lower --model.learning_rate" in said
    assert not list((tmp_path / "classifier").glob("*"))


def test_existing_classifier_is_kept_unless_overwritten(sets, fit, tmp_path):
    (tmp_path / "classifier").mkdir()  # an empty folder is as good as none
    words = (*sets, "--trainer.max_epochs", 1)
    assert fit(*words)[0] == 0
    first = (tmp_path / "classifier/best.ckpt").read_bytes()
    code, said = fit(*words, "--seed_everything", 1)
    assert code == 2
    assert "classifier/best.ckpt exists already" in said
    assert (tmp_path / "classifier/best.ckpt").read_bytes() == first
    assert fit(*words, "--seed_everything", 1, "--writer.overwrite", "true")[0] == 0
    assert (tmp_path / "classifier/best.ckpt").read_bytes() != first
    assert {file.name for file in (tmp_path / "classifier").iterdir()} == FILES


@pytest.mark.parametrize("name", ["metrics.json", "best.ckpt"])
def test_other_files_are_never_overwritten(sets, fit, tmp_path, name):
    (tmp_path / "classifier").mkdir()
    file = tmp_path / "classifier" / name
    file.write_text('{"checkpoint": "of another program"}')
    code, said = fit(*sets, "--writer.overwrite", "true")
    assert (code, "Traceback" in said) == (2, False), said
    assert f"classifier/{name} is not overwritten, since it is no" in said
    assert file.read_text() == '{"checkpoint": "of another program"}'


def test_tilde_is_a_folder_of_that_name(sets, fit, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    words = (*sets, "--trainer.max_epochs", 1, "--writer.overwrite", "true", "--writer.path")
    for path in ("~/x", "~", "~"):
        code, said = fit(*words, path)
        assert code == 0, said
        shutil.rmtree(tmp_path / "~/x", ignore_errors=True)
    assert {file.name for file in (tmp_path / "~").iterdir()} == FILES
    assert f"--model.classifier '{tmp_path}/~/best.ckpt'" in said
    assert not (tmp_path / "home").exists()


def test_other_data_raise():
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", max_epochs=1)
    loader = torch.utils.data.DataLoader(torch.ones(4, 2))
    with pytest.raises(UsageError, match="needs a LabelledPairDataModule"):
        trainer.fit(ClassifierTraining(), loader)


def test_help_lists_the_options(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--help-all"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for option in (
        *("--model.class_weights", "--data.viral.dnabert_s", "--data.record_pattern"),
        *("--early_stopping.patience", "--writer.overwrite", "--trainer.max_epochs"),
    ):
        assert option in text
    assert "Embedding file of the proteins, in any order." in " ".join(text.split())
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "fit train a classifier" in " ".join(capsys.readouterr().out.split())


def test_shipped_config_is_the_authors_setting(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", "train_classifier.yaml", "--print_config"])
    assert ended.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    given = yaml.safe_load((shipped_configs() / "train_classifier.yaml").read_text())
    assert printed["seed_everything"] == given["seed_everything"] == 42
    assert printed["model"]["learning_rate"] == 2e-4
    assert printed["early_stopping"]["patience"] == 5
