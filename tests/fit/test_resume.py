"""A training that is interrupted goes on from its last whole epoch, as if it had not been."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from virnucpro_pl.models.classifier import load_classifier

pytestmark = pytest.mark.slow

EPOCHS = 6


@pytest.fixture(scope="module")
def words(write_embeddings, tmp_path_factory):
    """Options of a training on 40 records of each class."""
    folder = tmp_path_factory.mktemp("sets")
    draw = np.random.default_rng(0)
    words = []
    for name, mean in (("viral", 0.2), ("other", -0.2)):
        ids = [f"{name}{r}_chunk_{c + 1}F2" for r in range(40) for c in range(r % 4 + 2)]
        for kind, width in (("dnabert_s", 5), ("esm2", 7)):
            path = folder / f"{name}_{kind}.h5"
            write_embeddings(path, ids, draw.normal(mean, size=(len(ids), width)).astype("f4"))
            words += [f"--data.{name}.{kind}", str(path)]
    fixed = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    return ["fit", "--config", "train_classifier.yaml", *words, *fixed]


@pytest.fixture
def slow(tmp_path):
    """A launcher whose training waits at each step while the file `wait` is there."""
    script = tmp_path / "slow.py"
    script.write_text(
        "import os, time\n"
        "from virnucpro_pl import ClassifierTraining as T\n"
        "from virnucpro_pl.cli.main import main\n"
        "step = T.training_step\n"
        "def waits(self, batch, batch_idx):\n"
        "    while self.current_epoch == 3 and batch_idx == 2 and os.path.exists('wait'):\n"
        "        open('waiting', 'w').close()\n"
        "        time.sleep(0.1)\n"
        "    return step(self, batch, batch_idx)\n"
        "T.training_step = waits\n"
        "main()\n"
    )
    (tmp_path / "wait").touch()
    return (str(script),)


def content(folder):
    """What a training has made, but for paths."""
    metrics = json.loads((folder / "metrics.json").read_text())
    weights = load_classifier(str(folder / "best.ckpt")).state_dict()
    tables = [(folder / name).read_text() for name in ("calibration.tsv", "thresholds.tsv")]
    chosen = {key: metrics[key] for key in ("epoch", "held_out", "calibration", "epochs", "split")}
    return weights, tables, chosen


def assert_same(one, other):
    (weights, *rest), (others, *other_rest) = content(one), content(other)
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert rest == other_rest


@pytest.fixture
def whole(start, words, tmp_path):
    """The folder of a training that nothing interrupts."""
    folder = tmp_path / "whole"
    ended = start(*words, "--trainer.max_epochs", EPOCHS, "--writer.path", folder).wait(60)
    assert ended.code == 0, ended.log
    assert len(json.loads((folder / "metrics.json").read_text())["epochs"]) == EPOCHS
    return folder


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_interrupted_training_goes_on_as_if_nothing_had_been(
    start, words, slow, whole, tmp_path, number
):
    options = (*words, "--trainer.max_epochs", EPOCHS)
    command = start(*options, launcher=slow)
    command.wait_for((tmp_path / "waiting").exists)
    os.kill(command.pid, number)
    ended = command.wait(30)
    assert ended.code == (-9 if number == signal.SIGKILL else 128 + number), ended.log
    assert not (tmp_path / "classifier").exists()
    if number != signal.SIGKILL:
        assert "Traceback" not in ended.log
        kept = "kept in classifier.parts; the same command goes on from there"
        assert kept in ended.log.splitlines()[-1]
    for changed, message in (
        (("--model.learning_rate", 0.1), "of another run: learning_rate was 0.0002 and is 0.1"),
        (("--trainer.gradient_clip_val", 0.5), "gradient_clip_val was None and is 0.5"),
        (("--early_stopping.patience", 9), "early_stopping.patience was 5 and is 9"),
        (("--trainer.max_epochs", 2), "has 3 epochs, more than --trainer.max_epochs 2"),
    )[: 4 if number == signal.SIGKILL else 1]:
        refused = start(*options, *changed).wait(60)
        assert (refused.code, "Traceback" in refused.log) == (2, False), refused.log
        assert message in refused.log
        assert "the same command goes on" not in refused.log
    (tmp_path / "wait").unlink()
    ended = start(*options, launcher=slow).wait(60)
    assert ended.code == 0, ended.log
    assert "Continuing: 3 epochs are done already" in ended.log
    assert "Epoch 2:" not in ended.log
    assert_same(tmp_path / "classifier", whole)
    assert not (tmp_path / "classifier.parts").exists()


def test_sigterm_within_a_callback_does_not_end_with_0(start, words, tmp_path):
    script = tmp_path / "signals.py"
    script.write_text(
        "import os, signal, weakref\n"
        "from virnucpro_pl import ClassifierTraining\n"
        "from virnucpro_pl.cli.main import main\n"
        "step = ClassifierTraining.training_step\n"
        "def signals(self, batch, batch_idx):\n"
        "    if self.current_epoch == 3:\n"
        "        thing = {1}\n"
        "        seen = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGTERM))\n"
        "        del thing\n"
        "    return step(self, batch, batch_idx)\n"
        "ClassifierTraining.training_step = signals\n"
        "main()\n"
    )
    options = (*words, "--trainer.max_epochs", EPOCHS)
    ended = start(*options, launcher=[str(script)]).wait(60)
    assert ended.code == 143, ended.log
    assert "Traceback" not in ended.log
    assert not (tmp_path / "classifier").exists()


@pytest.mark.parametrize("first", [True, False], ids=["first epoch", "later"])
def test_second_training_leaves_the_first_alone(start, words, slow, whole, tmp_path, first):
    if first:  # before there is a state
        script = Path(slow[0])
        script.write_text(script.read_text().replace("self.current_epoch == 3", "True"))
    options = (*words, "--trainer.max_epochs", EPOCHS, "--model.class_weights", "[1, 1]")
    command = start(*options, launcher=slow)
    command.wait_for((tmp_path / "waiting").exists)
    second = start(*options).wait(60)
    assert second.code == 2, second.log
    assert "Another run is writing classifier: wait for it" in second.log
    assert "goes on from there" not in second.log
    command.kill()
    command.wait(30)
    (tmp_path / "wait").unlink()
    ended = start(*options).wait(60)
    assert ended.code == 0, ended.log
    assert_same(tmp_path / "classifier", whole)


def test_leftovers_of_a_kill_while_replacing_are_removed(start, words, tmp_path):
    options = (*words, "--trainer.max_epochs", 1, "--writer.overwrite", "true")
    assert start(*options).wait(60).code == 0
    (tmp_path / "classifier.parts/replaced").mkdir(parents=True)
    (tmp_path / "classifier.parts/replaced/best.ckpt").touch()
    ended = start(*options).wait(60)
    assert ended.code == 0, ended.log
    assert not (tmp_path / "classifier.parts").exists()


def test_overwrite_starts_over(start, words, slow, whole, tmp_path):
    options = (*words, "--trainer.max_epochs", EPOCHS, "--writer.overwrite", "true")
    command = start(*options, launcher=slow)
    command.wait_for((tmp_path / "waiting").exists)
    os.kill(command.pid, signal.SIGTERM)
    ended = command.wait(30)
    assert ended.code == 143, ended.log
    assert "the same command with --writer.overwrite false goes on from there" in ended.log
    ended = start(*options).wait(60)
    assert ended.code == 0, ended.log
    assert "Continuing" not in ended.log
    assert_same(tmp_path / "classifier", whole)


@pytest.mark.parametrize("early", [False, True], ids=["last epoch", "stopped early"])
def test_kill_before_publishing_trains_no_further(start, words, tmp_path, early):
    script = tmp_path / "dies.py"
    script.write_text(
        "import os\n"
        "import virnucpro_pl.fit.classifier_writer as w\n"
        "from virnucpro_pl.cli.main import main\n"
        "w.publish_folder = lambda *_, **__: os._exit(9)\n"
        "main()\n"
    )
    stop = ("--model.learning_rate", 1e-30, "--model.momentum", 0, "--early_stopping.patience", 1)
    options = (*words, "--trainer.max_epochs", 50 if early else 2, *(stop if early else ()))
    assert start(*options, launcher=(str(script),)).wait(60).code == 9
    parts = Path(tmp_path / "classifier.parts")
    assert not (tmp_path / "classifier").exists()
    assert {"best.ckpt", "metrics.json"} <= {file.name for file in (parts / "output").iterdir()}
    ended = start(*options).wait(60)
    assert ended.code == 0, ended.log
    assert " epochs are done already" in ended.log
    assert "INFO Epoch " not in ended.log
    whole = start(*options, "--writer.path", "whole").wait(90)
    assert whole.code == 0, whole.log
    assert_same(tmp_path / "classifier", tmp_path / "whole")
    assert not parts.exists()


def test_damaged_state_is_told(start, words, slow, tmp_path):
    options = (*words, "--trainer.max_epochs", EPOCHS)
    command = start(*options, launcher=slow)
    command.wait_for((tmp_path / "waiting").exists)
    command.kill()
    command.wait(30)
    state = tmp_path / "classifier.parts/state.ckpt"
    whole = state.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1  # among the numbers
    for damaged in (whole[:1000], bytes(flipped)):
        state.write_bytes(damaged)
        ended = start(*options).wait(60)
        assert (ended.code, "Traceback" in ended.log) == (2, False), ended.log
        assert "classifier.parts/state.ckpt cannot be read" in ended.log
        assert "--writer.overwrite true" in ended.log
