"""Inputs as words, aliases, and the config that is taken where none is named."""

import h5py
import pytest

from virnucpro_pl.cli.main import main
from virnucpro_pl.cli.short_form import expand
from virnucpro_pl.errors import UsageError

DEFAULT = "--config virnucpro.yaml"


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("c.fa.gz -o results --classifier 500_model.pth",
         f"{DEFAULT} --writer.path results --model.classifier 500_model.pth --data.path=c.fa.gz"),
        ("--config e.yaml p.faa -o p.h5", "--config e.yaml --writer.path p.h5 --data.path=p.faa"),
        ("-o p.h5 p.faa --config e.yaml", "--config e.yaml --writer.path p.h5 --data.path=p.faa"),
        ("-c esm2.yaml p.faa -o=p.h5", "-c esm2.yaml --writer.path=p.h5 --data.path=p.faa"),
        ("--data.path p.faa -o p.h5", f"{DEFAULT} --data.path p.faa --writer.path p.h5"),
        ("--trainer.devices -1 p.fa", f"{DEFAULT} --trainer.devices -1 --data.path=p.fa"),
        ("--print_config p.fa", f"{DEFAULT} --print_config --data.path=p.fa"),
        ("--classifier=a=b.pth x=y.fa", f"{DEFAULT} --model.classifier=a=b.pth --data.path=x=y.fa"),
        ("-", f"{DEFAULT} --data.path=-"),
        ("a.fa -o r b.fq.gz --print_config -",
         f"{DEFAULT} --writer.path r --print_config --data.path=a.fa b.fq.gz -".replace(
             "--writer.path r --print_config", "--print_config --writer.path r")),
        ("--data.path a.fa b.fa - -o r", f"{DEFAULT} --data.path a.fa b.fa - --writer.path r"),
        ("-o r --data.path=a.fa b.fa", f"{DEFAULT} --data.path=a.fa b.fa --writer.path r"),
        ("--data.init_args.path a.fa b.fa",
         f"{DEFAULT} --data.init_args.path a.fa b.fa"),
        ("--model.help virnucpro_pl.ESM2Embedder", "--model.help virnucpro_pl.ESM2Embedder"),
        ("--model virnucpro_pl.ESM2Embedder p.fa",
         "--model virnucpro_pl.ESM2Embedder --data.path=p.fa"),
        ("--model.class_path=A p.fa", "--model.class_path=A --data.path=p.fa"),
        ("", ""),
        ("--config esm2.yaml --data.path x --writer.path y",
         "--config esm2.yaml --data.path x --writer.path y"),
    ],
)  # fmt: skip
def test_short_form_stands_for_the_long_one(short, long):
    assert expand(["predict", *short.split()]) == ["predict", *long.split()]


def test_short_form_runs(weights_file, random_proteins, write_fasta, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_fasta(tmp_path / "in.faa", random_proteins([30, 4]))
    main([
        "predict", "in.faa", "-o", "out.h5", "--config", "esm2.yaml",
        "--model.weights", str(weights_file), "--trainer.accelerator=cpu", "--data.num_workers=0",
    ])  # fmt: skip
    with h5py.File("out.h5") as file:
        assert file["sequence_ids"].asstr()[:].tolist() == ["p0", "p1"]


@pytest.mark.parametrize(
    "words",
    [
        ["--data.path", "a.fa", "--data.path", "b.fa"],
        ["--data.path=a.fa", "x.fa", "--data.path=b.fa"],
        ["--data.path=a.fa", "--data.init_args.path=b.fa"],
    ],
)
def test_inputs_that_another_option_replaces_are_told(words, caplog):
    expand(["predict", *words])
    assert "--data.path is given more than once: only the inputs of the last" in caplog.text


@pytest.mark.parametrize(
    "words", [["--data.path=a.fa", "--data.path+=b.fa"], ["--data.path+", "b"]]
)
def test_inputs_cannot_be_appended_by_an_option(words):
    with pytest.raises(UsageError, match="write all inputs behind one"):
        expand(["predict", *words])


def test_word_of_one_dash_is_no_input():
    with pytest.raises(UsageError, match="There is no option -oresults; those of one letter are"):
        expand(["predict", "a.fa", "-oresults"])


def test_trial_keeps_what_is_not_its_own_output():
    kept = expand(["predict", "--config", "demo.yaml", "a.fa", "-o", "results"])
    assert "--writer.overwrite=false" in kept
    assert "--writer.overwrite=false" not in expand(["predict", "--config", "demo.yaml"])
    given = ["predict", "--config", "demo.yaml", "-o", "x", "--writer.overwrite", "true"]
    assert "--writer.overwrite=false" not in expand(given)


def test_forgotten_input_is_missed_and_not_a_config():
    assert expand(["predict", "-o", "results"])[1:3] == ["--config", "virnucpro.yaml"]
