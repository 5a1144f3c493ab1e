"""A path on the command line is the file of that name, whatever YAML would make of it."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from jsonargparse import Namespace

from virnucpro_pl.cli.literal_paths import read_paths, spell_paths
from virnucpro_pl.cli.main import main

NAMES = [
    *("a: b.faa", "#1.faa", "null", "~", "-x.faa", "--y.faa", "[1]", "{a: b}", "12", "1e3", "true"),
    *("'q'", '"q"', " x ", "a=b", "é.faa", "$HOME", "%s", "*", "!tag", "a:", "?", "\udcff.faa"),
]


@pytest.mark.parametrize("name", NAMES)
def test_paths_come_back_as_they_were(name):
    words = ["predict", f"--data.path={name}", "--data.length", "3"]
    spelt = spell_paths(words)
    assert spelt[0::2] == ["predict", "--data.length"]
    assert yaml.safe_load(spelt[1]) == spelt[1]
    assert read_paths(spelt) == words
    config = Namespace(data=Namespace(path=spelt[1], files=[Path(spelt[1])], n=3))
    expected = Namespace(data=Namespace(path=words[1], files=[Path(words[1])], n=3))
    assert read_paths(config) == expected


def test_only_paths_are_spelt():
    words = [
        *("export", "null", "--to", "npy", "--output", "~", "--overwrite=true"),
        *(
            "--model.esm2.weights",
            "-w.pt",
            "--model.init_args.classifier=c",
            "--model.name",
            "null",
        ),
        *("--data.viral.esm2=#1", "--model.esm2", "null", "--data.path", "--writer.path"),
    ]
    spelt = spell_paths(words)
    changed = [word for word, other in zip(words, spelt, strict=True) if word != other]
    assert changed == ["~", "-w.pt", "--model.init_args.classifier=c", "--data.viral.esm2=#1"]
    assert read_paths(spelt) == words
    positional = spell_paths(["null", "--to", "npy", "-x.h5", "-h"], positional=True)
    assert positional[1:3] == ["--to", "npy"]
    assert positional[4] == "-h"
    assert read_paths(positional) == ["null", "--to", "npy", "-x.h5", "-h"]


def test_inputs_that_follow_each_other_are_a_list_of_literal_names():
    names = [*NAMES, "a, b", "-", "1e5", "[x].fa"]
    plain = [name for name in names if name == "-" or not name.startswith("-")]
    for first in names:
        for option in ([f"--data.path={first}"], ["--data.path", first]):
            if option[-1].startswith("--y"):
                continue
            spelt = spell_paths(["predict", *option, *plain, "-c", "x.yaml", "--data.length", "3"])
            assert spelt[-4:] == ["-c", "x.yaml", "--data.length", "3"]
            assert len(spelt) == 1 + len(option) + 4
            assert read_paths(yaml.safe_load(spelt[-5].removeprefix("--data.path="))) == [
                first, *plain,
            ]  # fmt: skip


def test_predict_reads_several_files_of_any_name_in_order(
    weights_file, fair_esm_vectors, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    names = ["1e5", "[x].fa", "null", "a, b", " c: d ", "./-"]
    for row, name in enumerate(names):
        Path(name).write_text(f">p{row}\n{'MKVL'[: row % 4 + 1]}\n")
    fixed = (
        *("--config", "esm2.yaml", "--model.weights", str(weights_file)),
        *("--trainer.accelerator", "cpu", "--trainer.precision=32", "--data.num_workers=0"),
    )
    for number, words in enumerate(
        (names, ["--data.path", *names], [f"--data.path={names[0]}", *names[1:]])
    ):
        main(["predict", *fixed, *words, "-o", f"{number}.h5"])
        with h5py.File(f"{number}.h5") as file:
            assert file["sequence_ids"].asstr()[:].tolist() == [f"p{row}" for row in range(6)]
            config = yaml.safe_load(file.attrs["config"])
        assert config["data"]["init_args"]["path"][1:] == names[1:]  # 1e5 is shown as a number


@pytest.mark.parametrize("name", ["a: b.faa", "#1.faa", "null", "~", "-x.faa", "[1]", "007"])
def test_predict_reads_and_writes_files_of_any_name(
    name, weights_file, write_fasta, fair_esm_vectors, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    weights = "null" if name == "~" else f"{name}.pt"
    Path(weights).write_bytes(weights_file.read_bytes())
    write_fasta(Path(name), ["MKV"])
    output = f"{name}: #h5"
    main([
        "predict", "--config", "esm2.yaml", "--data.path", name, "--model.weights", weights,
        "--writer.path", output, "--trainer.accelerator", "cpu", "--trainer.precision=32",
    ])  # fmt: skip
    with h5py.File(output) as file:
        np.testing.assert_allclose(file["embeddings"], fair_esm_vectors(["MKV"]), rtol=0, atol=1e-5)
        config = yaml.safe_load(file.attrs["config"])
    assert config["data"]["init_args"]["path"] == name
    assert config["model"]["init_args"]["weights"] == weights
    assert sorted(os.listdir()) == sorted([name, weights, output, f"{output}.run.json"])


def test_print_config_shows_paths_as_they_are(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main([
            "predict", "--config=virnucpro.yaml", "--data.path", "null", "--writer.path", "a: b",
            "--model.classifier", "~", "--model.esm2.weights=#1", "--print_config",
        ])  # fmt: skip
    assert ended.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["data"]["init_args"]["path"] == "null"
    assert config["writer"]["init_args"]["path"] == "a: b"
    assert config["model"]["init_args"]["classifier"] == "~"
    assert config["model"]["init_args"]["esm2"]["init_args"]["weights"] == "#1"


def test_export_compare_and_plot_take_files_of_any_name(
    write_embeddings, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for name in ("null", "-a: #b", "~"):
        write_embeddings(tmp_path / name, ["x", "y"], np.eye(2, dtype=np.float32))
    main(["export", "-a: #b", "--to", "npy", "--output", "#1.npy"])
    np.testing.assert_array_equal(np.load("#1.npy"), np.eye(2))
    main(["compare", "null", "~", "--output", "[1]"])
    assert "Compared: 2 records" in capsys.readouterr().out
    assert Path("[1]").is_file()


def test_fit_names_missing_files_as_they_were_given(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main([
            "fit", "--data.viral.dnabert_s", "x", "--data.viral.esm2", "#1",
            "--data.other.dnabert_s", "null", "--data.other.esm2=~", "--trainer.accelerator=cpu",
        ])  # fmt: skip
    assert ended.value.code == 2
    assert "null: no such embedding file" in capsys.readouterr().err
