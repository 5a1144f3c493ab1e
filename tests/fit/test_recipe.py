"""The recipe of docs/train.md for another ESM-2, command by command, on small models."""

import gzip
import re
import shlex
import shutil
from pathlib import Path

import h5py
import pytest

from virnucpro_pl.cli.shipped import shipped_configs
from virnucpro_pl.models.classifier import load_classifier

PAGE = Path(__file__).parents[2] / "docs" / "train.md"
ESM2 = "esm2_t6_8M_UR50D"
SMALL = (
    *("--model.esm2.name", ESM2, "--model.esm2.weights", "random"),
    *("--model.dnabert_s.weights", "random", "--model.dnabert_s.size", "tiny"),
    *("--data.num_workers", "0"),
)
REFUSED = "best.ckpt was trained on other embeddings than these: "


def recipe():
    """Words of each command of the section, without the program."""
    section = PAGE.read_text().partition("## With another ESM-2\n")[2].partition("\n## ")[0]
    [block] = re.findall(r"^```text\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines]


@pytest.fixture
def run(start, tmp_path):
    """Run a command of its own process: how it ended."""

    def call(*words, timeout=120):
        command = start(*words, "--trainer.accelerator", "cpu")
        ended = command.wait(timeout)
        command.assert_nothing_left()
        return ended

    return call


@pytest.fixture
def followed(run, tmp_path):
    """Follow the recipe on the bundled samples; the log of each command."""
    for name, sample in (("viral", "sample.fna"), ("other", "sample_other.fna")):
        shutil.copy(shipped_configs() / sample, tmp_path / f"{name}.fasta")
    with gzip.open(tmp_path / "contigs.fasta.gz", "wb") as file:
        file.write((shipped_configs() / "sample.fna").read_bytes())
    logs = []
    for words in recipe():
        small = SMALL if words[0] == "predict" else ("--trainer.max_epochs", "5")
        ended = run(*words, *small)
        assert ended.code == 0, ended.log
        logs.append(ended.log)
    return logs


@pytest.mark.slow
def test_recipe_embeds_fits_and_predicts_and_refuses_another_esm2(
    followed, run, tmp_path, weights_file
):
    assert [words[0] for words in recipe()] == ["predict", "predict", "fit", "predict"]
    checkpoint = "classifier_650m/best.ckpt"
    assert (
        f"--config virnucpro.yaml --model.esm2.name {ESM2} --model.classifier {checkpoint}"
        in (followed[2])
    )
    known = load_classifier(str(tmp_path / checkpoint)).embedders
    for name in ("dnabert_s", "esm2"):
        with h5py.File(tmp_path / "viral" / f"{name}.h5") as file:
            same = ("model", "weights_sha256", "layer", "pooling", "precision")
            expected = {key: str(file.attrs[key]) for key in same}
        assert known[name].items() >= expected.items()
    assert known["esm2"]["weights_sha256"] == f"random:{ESM2}:0"
    assert "trained on" not in followed[3]
    assert (tmp_path / "results" / "contigs.tsv").stat().st_size

    # Runs and embeddings of other networks.
    words = ("predict", "--config", "virnucpro_650m.yaml", "contigs.fasta.gz", *SMALL)
    name = ("--model.esm2.name", "esm2_t12_35M_UR50D")
    others = {
        "layer of ESM-2 (esm2_t6_8M_UR50D) was 6 and is 3": ("--model.esm2.layer", "3"),
        "model of ESM-2 was esm2_t6_8M_UR50D and is esm2_t12_35M_UR50D": name,
    }
    two = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
    for number, (message, options) in enumerate(others.items()):
        embedded = f"embedded{number}"
        saving = ("--classifier", "random", "--writer.save_embeddings", "true", "-o", embedded)
        assert run(*words, *options, *saving).code == 0
        files = (
            "--data.dnabert_s",
            f"{embedded}/dnabert_s.h5",
            "--data.esm2",
            f"{embedded}/esm2.h5",
        )
        classify = ("predict", "--config", "classify.yaml", *files)
        for command in ((*words, *options), classify):
            for ranks in ((), two):
                ended = run(*command, "--classifier", checkpoint, "-o", "calls", *ranks)
                assert ended.code == 2, ended.log
                assert ended.log.count(REFUSED) == 1
                assert message in ended.log
                assert "Loaded" not in ended.log
                assert not (tmp_path / "calls").exists()

    # A published file of another network, whose name is not known before it is read.
    words = ("predict", "--config", "virnucpro.yaml", "contigs.fasta.gz", *SMALL[4:])
    weights = ("--model.esm2.weights", weights_file)
    ended = run(*words, *weights, "--classifier", checkpoint, "-o", "calls")
    assert ended.code == 2, ended.log
    assert "model of ESM-2 was esm2_t6_8M_UR50D and is ESM-2, 3 layers of 32" in ended.log

    # What was embedded by the same networks is taken.
    files = ("--data.dnabert_s", "other/dnabert_s.h5", "--data.esm2", "other/esm2.h5")
    classify = ("predict", "--config", "classify.yaml", *files)
    ended = run(*classify, "--classifier", checkpoint, "-o", "calls")
    assert ended.code == 0, ended.log
    assert "trained on" not in ended.log
