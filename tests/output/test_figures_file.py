"""Files of figures replace earlier ones of their command, and never anything else."""

import json
import os
import threading
from pathlib import Path

import pytest

from virnucpro_pl.bench import command as bench
from virnucpro_pl.cli.main import main
from virnucpro_pl.errors import OutputError, UsageError
from virnucpro_pl.output import figures_file
from virnucpro_pl.output.figures_file import check_figures_file, write_figures

FOREIGN = {
    "config.json": {"model_type": "esm", "hidden_size": 320},
    "package.json": {"name": "x", "version": "1.0.0"},
    "out.h5.run.json": {"rows": 3, "ranks": []},
}


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """Two tables that can be compared."""
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        header = "Sequence_ID\tPrediction\tscore1\tscore2\n"
        (tmp_path / name).write_text(f"{header}x_chunk_1F1\tvirus\t0.1\t0.9\n")


def compare(output):
    main(["compare", "a", "b", "--output", output])


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("command", ["compare", "bench"])
def test_other_json_is_refused_and_kept(tables, tmp_path, capsys, name, command):
    text = json.dumps(FOREIGN[name])
    (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit) as ended:
        compare(name) if command == "compare" else main(["bench", "--output", name])
    assert ended.value.code == 2
    assert f"{name} is there, and no JSON report of this command" in capsys.readouterr().err
    assert (tmp_path / name).read_text() == text


def test_earlier_and_empty_files_are_replaced(tables, tmp_path):
    (tmp_path / "c.json").touch()
    for _ in range(2):
        compare("c.json")
        assert json.loads((tmp_path / "c.json").read_text())["gates_unmet"] == []
    with pytest.raises(UsageError, match="no JSON report of this command"):
        check_figures_file(tmp_path / "c.json", [], bench._KEYS)


def test_pipe_is_written_and_stays(tables, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    compare("pipe")
    reader.join(30)
    assert json.loads(read[0])["a"] == "a"
    assert (tmp_path / "pipe").is_fifo()


def test_standard_output_is_written_behind_the_tables(capfd):
    check_figures_file(Path("/dev/stdout"), [], ["a"])
    os.write(1, b"tables\n")
    write_figures(Path("/dev/stdout"), {"a": 1})
    assert capfd.readouterr().out == 'tables\n{\n  "a": 1\n}\n'
    assert os.path.exists("/dev/stdout")


def test_full_disk_is_an_output_error(tmp_path, monkeypatch):
    with pytest.raises(OutputError, match="/dev/full cannot be written"):
        write_figures(Path("/dev/full"), {})

    def full(path, content):
        raise OSError("No space left on device")

    monkeypatch.setattr(figures_file, "write_json", full)
    with pytest.raises(OutputError, match=r"c\.json cannot be written: No space"):
        write_figures(tmp_path / "c.json", {})


def test_bench_looks_at_its_folder_before_it_measures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(figures_file.os, "access", lambda path, mode: False)
    with pytest.raises(SystemExit) as ended:
        main(["bench", "--output", str(tmp_path / "x.json")])
    assert ended.value.code == 2
    assert f"the folder {tmp_path} cannot be written to" in capsys.readouterr().err
