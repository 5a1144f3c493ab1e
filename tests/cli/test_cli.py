import os
import re
import signal
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from virnucpro_pl.cli.main import main
from virnucpro_pl.cli.shipped import find_config, shipped_configs
from virnucpro_pl.cli.short_form import ALIASES
from virnucpro_pl.errors import UsageError
from virnucpro_pl.version import __version__

CHECKOUT = Path(__file__).parents[2]
SMALL = (
    *("predict", "--config", "esm2.yaml", "--data.path", "sample.faa", "--data.num_workers", "0"),
    *("--model.name", "esm2_t6_8M_UR50D", "--model.weights", "random", "--writer.path", "out.h5"),
)


def run(*words, folder, timeout=120, **options):
    return subprocess.run(
        [*words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **options,
    )


def test_help_names_exit_codes_and_subcommand(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in ("predict", "exit codes", "3 numerical", "instability", "130 Ctrl-C"):
        assert part in text


def seconds(*words, folder):
    """Median time of a few runs, the first of which is left out: it reads from the disk."""
    spent = []
    for _ in range(5):
        before = time.perf_counter()
        assert run(sys.executable, *words, folder=folder).returncode == 0
        spent.append(time.perf_counter() - before)
    return statistics.median(spent[1:])


@pytest.mark.slow
def test_version_takes_a_fraction_of_importing_lightning(tmp_path):
    lightning = seconds("-c", "import lightning.pytorch.cli", folder=tmp_path)
    assert seconds("-m", "virnucpro_pl", "--version", folder=tmp_path) < lightning / 5


IMPORTED = """if True:
    import atexit, sys
    heavy = {"lightning", "torch", "jsonargparse", "numpy", "h5py"}
    atexit.register(lambda: print(*sorted(heavy & set(sys.modules)), file=sys.stderr))
    from virnucpro_pl.__main__ import main
    import logging; logging.disable()
    main()
"""
"""Runs the command and says what large packages it has imported."""


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--version"], 0),
        (["--help"], 0),
        ([], 2),
        (["typo"], 2),
        (["--config", "esm2.yaml"], 2),
        (["predict"], 2),
        (["predict", "-h"], 0),
        (["predict", "--config", "absent.yaml"], 2),
        (["predict", "--config", "train_classifier.yaml"], 2),
        (["predict", "--config", "demo.yaml", "--data.path"], 2),
        (["fit", "--help"], 0),
        (["verify", "--help"], 0),
        (["verify", "contigs.fa"], 2),
        (["fit", "--config", "esm2.yaml"], 2),
        (["export", "--to"], 2),
        (["compare", "a", "b", "--config", "esm2.yaml"], 2),
    ],
)
def test_what_needs_no_command_imports_nothing_large(tmp_path, words, code):
    ended = run(sys.executable, "-c", IMPORTED, *words, folder=tmp_path)
    assert (ended.returncode, ended.stderr.split()) == (code, [])


def test_export_imports_neither_lightning_nor_torch(tmp_path, write_embeddings):
    write_embeddings(tmp_path / "a.h5", ["x", "y"], np.eye(2, dtype=np.float32))
    words = ("export", "a.h5", "--to", "npy")
    ended = run(sys.executable, "-c", IMPORTED, *words, folder=tmp_path)
    assert ended.returncode == 0
    assert ended.stderr.split() == ["h5py", "jsonargparse", "numpy"]
    assert np.load(tmp_path / "a.npy").tolist() == [[1, 0], [0, 1]]


def test_version_is_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"virnucpro-pl {__version__}\n"


def test_command_collects_garbage_once_it_is_imported_but_nothing_of_the_imports(tmp_path):
    code = """if True:
        import atexit, gc
        atexit.register(lambda: print(gc.isenabled(), gc.get_freeze_count() > 9999))
        from virnucpro_pl.__main__ import main
        main(["compare", "absent", "absent"])
    """
    ended = run(sys.executable, "-c", code, folder=tmp_path)
    assert ended.returncode == 2
    assert ended.stdout.split() == ["True", "True"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
@pytest.mark.parametrize("wait", [0, 1.5])
def test_signal_during_imports_ends_the_command_there(start, tmp_path, number, wait):
    command = start("predict", "--config", "demo.yaml", "--trainer.accelerator=cpu")

    def takes_signals():
        status = Path(f"/proc/{command.pid}/status").read_text()
        caught = int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16)
        return caught >> (signal.SIGTERM - 1) & 1

    command.wait_for(takes_signals)
    time.sleep(wait)
    os.kill(command.pid, number)
    ended = command.wait(10)
    assert ended.code == 128 + number
    [line] = ended.log.splitlines()
    name = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}[number]
    assert line.endswith(f"WARNING {name}: stopping")
    assert list(tmp_path.iterdir()) == [command.log_file]


def test_short_help_is_a_page_of_options_that_there_are(capsys):
    def shown(*words):
        with suppress(SystemExit):
            main(list(words))
        return capsys.readouterr().out

    def options(text):
        return set(re.findall(r"--[a-z_\d.]+[a-z_\d]", text)) - {"--help", "--version"}

    configs = ("virnucpro.yaml", "esm2.yaml")
    known = {
        "fit": shown("fit", "--help-all"),
        "predict": shown("predict", "--help-all")
        + "".join(shown("predict", "--config", name, "--help") for name in configs),
    }
    known["verify"] = known["predict"]
    for command, listed in known.items():
        page = shown(command, "--help")
        assert page.count("\n") <= 50
        assert page.startswith(f"usage: virnucpro-pl {command} ")
        assert options(page) - options(listed) <= {"--help-all", *ALIASES}


def test_print_config_shows_rule_free_options(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["predict", "--config", "esm2.yaml", "--data.path", "x.faa", "--print_config"])
    assert ended.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["data"]["init_args"]["path"] == "x.faa"
    assert config["model"]["init_args"]["name"] is None  # 3B, or what a weights file holds
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("esm2.yaml", ["--model.weights", "--model.layer", "--data.tokens_per_batch",
                       "--data.max_length", "--writer.commit_seconds", "--model.attention"]),
        ("demo.yaml", ["--model.enable_fp16", "--data.num_workers", "--writer.overwrite",
                       "--model.esm2.on_instability", "--model.dnabert_s.attention"]),
        ("classify.yaml", ["--model.classifier", "--data.esm2", "--writer.threshold"]),
    ],
)  # fmt: skip
def test_class_help_lists_options_of_the_config(capsys, name, options):
    main(["predict", "--config", name, "--help"])
    text = capsys.readouterr().out
    for option in options:
        assert option in text
    assert "as stalled" in text  # docstrings are shown


@pytest.mark.parametrize(
    "content", [None, "- 1\n", "", "model: 3\n", "model: {class_path: no.Such}\n", "{"]
)
def test_class_help_bad_config_exits_2(capsys, tmp_path, content):
    path = tmp_path / "c.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit) as ended:
        main(["predict", "--config", str(path), "--help"])
    assert ended.value.code == 2


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["fit"],
        ["predict", "--config", "absent.yaml"],
        [*SMALL, "--model.layers", "3"],
        [*SMALL, "--trainer.device", "3"],
        [*SMALL, "--trainer.precision", "17"],
        [*SMALL, "--model.attention", "fast"],
        [*SMALL, "--data.tokens_per_batch", "0"],
        [*SMALL, "--data.num_workers", "many"],
        [*SMALL, "--data.path", "absent.faa"],
        [*SMALL, "--trainer.accelerator", "toaster"],
        [*SMALL, "--trainer.strategy", "ddpp"],
        [*SMALL, "--model.name", "esm2_3B"],
        [*SMALL, "--model.layer", "7"],
        [*SMALL, "--model.weights", "absent.pt"],
    ],
)
def test_bad_usage_exits_2_and_writes_nothing(capsys, caplog, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_gpu_where_none_is_visible_exits_2_and_writes_nothing(start, tmp_path):
    (tmp_path / "empty").mkdir()
    command = start(
        *SMALL, "--trainer.accelerator", "gpu",
        env={"CUDA_VISIBLE_DEVICES": ""}, folder=tmp_path / "empty",
    )  # fmt: skip
    ended = command.wait(60)
    assert ended.code == 2, ended.log
    assert "Traceback" not in ended.log
    written = [path.name for path in (tmp_path / "empty").iterdir()]
    assert written == [command.log_file.name]


def test_find_config_bare_name_is_the_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Path(find_config("esm2.yaml")) == shipped_configs() / "esm2.yaml"
    for absent in ("other.yaml", "./esm2.yaml"):
        with pytest.raises(UsageError, match="There is no config"):
            find_config(absent)
    (tmp_path / "esm2.yaml").touch()
    assert find_config("esm2.yaml") == "esm2.yaml"


@pytest.mark.parametrize(
    "path",
    sorted(set(shipped_configs().glob("*.yaml")) - {shipped_configs() / "train_classifier.yaml"}),
    ids=lambda p: p.name,
)
def test_shipped_config_is_parsed(path, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    missing = {
        "classify.yaml": ["--data.esm2=a.h5", "--data.dnabert_s=b.h5", "--model.classifier=c.pth"]
    }
    needed = missing.get(path.name, ["--data.path=x"])
    with pytest.raises(SystemExit) as ended:
        main(["predict", "--config", path.name, *needed, "--writer.path=y", "--print_config"])
    printed = capsys.readouterr()
    assert ended.value.code == 0, printed.err
    given, parsed = yaml.safe_load(path.read_text()), yaml.safe_load(printed.out)
    for key in ("model", "data", "writer"):
        name = given[key]["class_path"].rpartition(".")[2]
        assert parsed[key]["class_path"].endswith(name)
    if path.name != "classify.yaml":
        assert given["trainer"]["precision"] == "16-mixed"


def test_esm2_config_runs_on_a_tiny_model(weights_file, random_proteins, write_fasta, tmp_path,
                                          monkeypatch, fair_esm_vectors):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    proteins = random_proteins([30, 4, 61])
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    main([
        "predict", "--config", "esm2.yaml", "--model.weights", str(weights_file), "--data.path",
        str(write_fasta(tmp_path / "in.faa", proteins)), "--writer.path", "out.h5",
        "--trainer.accelerator", "cpu", "--trainer.precision", "32", "--data.num_workers", "0",
    ])  # fmt: skip
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    with h5py.File("out.h5") as file:
        np.testing.assert_allclose(
            file["embeddings"], fair_esm_vectors(proteins), rtol=0, atol=1e-5
        )
        assert file["sequence_ids"].asstr()[:].tolist() == ["p0", "p1", "p2"]
        assert file["lengths"][:].tolist() == [30, 4, 61]
        assert file.attrs["precision"] == "32-true"
        assert file.attrs["complete"]
        assert yaml.safe_load(file.attrs["config"])["model"]["init_args"]["enable_fp16"] is False
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.faa", "out.h5", "out.h5.run.json"]


@pytest.mark.slow
def test_demo_config_runs_from_any_folder(tmp_path):
    words = ("-m", "virnucpro_pl", "predict", "--config", "demo.yaml", "--trainer.accelerator=cpu")
    ended = run(sys.executable, *words, folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    *_, found, wrote = ended.stderr.splitlines()
    assert re.search(r"Wrote demo\S*\. Look at it with: ", wrote)
    assert re.search(r" \d+ records: \d+ virus, \d+ others, \d+ without a score$", found)
    assert not list(tmp_path.glob("*.parts"))
    kept = (*words, "--writer.overwrite=false")
    again = run(sys.executable, *kept, folder=tmp_path)
    assert again.returncode == 2
    assert "exists already" in again.stderr
    assert "Traceback" not in again.stderr


def test_sample_is_taken_by_the_trial_config_only(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny = ("--model.weights=random", "--model.size=tiny", "--writer.path=x.h5")
    with pytest.raises(SystemExit) as ended:
        main(["predict", "--config=dnabert_s.yaml", "--data.path=sample.fna", *tiny])
    assert ended.value.code == 2
    assert "sample.fna" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prdict"], "no command 'prdict'; there are predict, bench"),
        (["--config", "esm2.yaml"], "The command comes first: virnucpro-pl predict --config"),
    ],
)
def test_misspelt_commands_are_named_in_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
