import subprocess
import sys

import pytest

from virnucpro_pl.cli.main import main

SCRIPT = """
from lightning.pytorch import Trainer
from virnucpro_pl import ESM2Embedder, HDF5Writer, SequenceDataModule

if __name__ == "__main__":
    {set_up}
    writer = HDF5Writer("out.h5")
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=[writer])
    model = ESM2Embedder("esm2_t6_8M_UR50D", weights="random")
    trainer.predict(model, SequenceDataModule("in.faa", num_workers=0))
"""


@pytest.fixture
def run(tmp_path):
    (tmp_path / "in.faa").write_text(">a\nMKV\n>b\nMKL\n")

    def call(*words, script=None):
        command = [sys.executable, *(("-c", script) if script else ("-m", "virnucpro_pl", *words))]
        ended = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stderr

    return call


PREDICT = (
    *("predict", "--config", "esm2.yaml", "in.faa", "-o", "out.h5", "--data.num_workers", "0"),
    *("--model.name", "esm2_t6_8M_UR50D", "--model.weights", "random"),
    *("--trainer.accelerator", "cpu"),
)


def test_log_speaks_of_records_and_ends_with_result_and_place(run):
    lines = run(*PREDICT).splitlines()
    assert "precision" in lines[0]
    assert "(" in lines[0].partition("precision")[2]  # in words
    assert lines[-2].endswith("2 records: 2 vectors of 320 numbers")
    assert " Wrote out.h5. Look at it with: " in lines[-1]
    assert not [line for line in lines if "pack" in line.replace("packed kernels", "")]
    assert sum("RANDOM" in line for line in lines) == 1


@pytest.mark.slow
def test_verbose_log_tells_phases_and_fill(run, tmp_path):
    text = run(*PREDICT, "--verbose", "--log_file", "log.txt")
    assert "packs " in text
    assert "prepare " in text
    kept = (tmp_path / "log.txt").read_text()
    assert len(kept.splitlines()) == len(text.splitlines())
    assert "2 vectors of 320 numbers" in kept


@pytest.mark.slow
def test_run_from_python_ends_with_the_same_lines_and_no_advert(run):
    lines = run(script=SCRIPT.format(set_up="pass")).splitlines()
    assert lines[-2].endswith("2 records: 2 vectors of 320 numbers")
    assert " Wrote out.h5. Look at it with: " in lines[-1]
    assert not [line for line in lines if "Tip" in line or "deprecated" in line]


@pytest.mark.slow
def test_logging_that_a_program_has_set_up_is_left_alone(run):
    set_up = 'import logging; logging.basicConfig(format="MINE %(message)s", level="INFO")'
    lines = run(script=SCRIPT.format(set_up=set_up)).splitlines()
    assert lines[-1].startswith("MINE Wrote out.h5")
    assert sum("Wrote" in line for line in lines) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--verbose=perhaps"], "--verbose must be true or false, not perhaps"),
        (["--log_file"], "--log_file has no value"),
        (["--log_file", "no/such/folder/log.txt"], "no/such/folder/log.txt cannot be written"),
    ],
)
def test_wrong_value_of_a_log_option_is_refused(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["predict", "--config", "demo.yaml", *words])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("words", [("in.fa", "-o", "out"), ("--config", "my.yaml", "-o", "out")])
def test_log_is_never_written_into_another_file(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("in.fa", "my.yaml"):
        (tmp_path / name).write_text("data: {}\n")
    given = words[0] if words[0] == "in.fa" else words[1]
    with pytest.raises(SystemExit) as ended:
        main(["predict", *words, "--log_file", given])
    assert ended.value.code == 2
    assert f"--log_file {given} is no log" in capsys.readouterr().err
    assert (tmp_path / given).read_text() == "data: {}\n"


def test_log_goes_on_behind_what_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        with pytest.raises(SystemExit):
            main(["predict", "absent.fa", "-x", "--log_file", "log.txt"])
    first, second = (tmp_path / "log.txt").read_text().splitlines()
    assert first.partition("ERROR")[2] == second.partition("ERROR")[2] != ""


def test_log_within_the_output_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.fa").write_text(">a\nACG\n")
    with pytest.raises(SystemExit) as ended:
        main(["predict", "--config", "demo.yaml", "in.fa", "-o", "out",
              "--log_file", "out.run.json", "--trainer.accelerator", "cpu"])  # fmt: skip
    assert ended.value.code == 2
    assert "out.run.json is where the output goes" in capsys.readouterr().err


def test_log_that_cannot_be_written_any_more_is_told_once(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["predict", "absent.fa", "-x", "--log_file", "/dev/full"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
