"""Whole runs as processes: results, exit codes, what is left behind."""

import json
import os
import signal
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from virnucpro_pl.cli.main import main
from virnucpro_pl.output.part_file import read_part


def rows_of(path):
    with h5py.File(path) as file:
        assert file.attrs["complete"]
        return file["sequence_ids"].asstr()[:].tolist(), file["embeddings"][:]


def failures(output):
    path = output.with_name(f"{output.name}.failures.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def proteins(random_proteins):
    return random_proteins([40, 3, 170, 80, 1, 300, 55, 120, 90, 33, 64, 200])


def test_one_and_two_ranks_equal_fair_esm(
    start, predict_words, weights_file, write_fasta, proteins, fair_esm_vectors, tmp_path
):
    fasta = write_fasta(tmp_path / "in.faa", proteins)
    outputs = {ranks: tmp_path / f"out{ranks}.h5" for ranks in (1, 2)}
    commands = {
        ranks: start(*predict_words(weights_file, fasta, output, ranks=ranks))
        for ranks, output in outputs.items()
    }
    for ranks, output in outputs.items():
        ended = commands[ranks].wait(90)
        assert ended.code == 0, ended.log
        commands[ranks].assert_nothing_left()
        assert "terminate called" not in ended.log
        ids, vectors = rows_of(output)
        assert ids == [f"p{i}" for i in range(len(proteins))]
        np.testing.assert_allclose(vectors, fair_esm_vectors(proteins), rtol=0, atol=1e-5)
        report = json.loads((tmp_path / f"out{ranks}.h5.run.json").read_text())
        assert report["totals"]["records"] == len(proteins)
        assert len(report["per_rank"]) == ranks
        assert all(part["records"] > 0 for part in report["per_rank"])
    one, two = rows_of(tmp_path / "out1.h5")[1], rows_of(tmp_path / "out2.h5")[1]
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-6)
    assert not list(tmp_path.glob("*.parts"))


def test_real_proteins_half_stored_legacy_file_equal_fair_esm(
    predict_words, reference, save_published, fair_esm_vectors, tmp_path
):
    from esm.model.esm2 import ESM2

    fasta = tmp_path / "in.faa"
    sequences = ["MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ", "MGSSHHHHHHSSGLVPRGSHMUBZX", "M" * 301]
    fasta.write_text("".join(f">sp|P{i}|X some protein\n{s}*\n" for i, s in enumerate(sequences)))
    path = save_published(reference.state_dict(), tmp_path / "w.pt", half=True, zipped=False)
    model = ESM2(3, 32, 4, alphabet="ESM-1b", token_dropout=True).eval()
    model.load_state_dict({k: v.half().float() for k, v in reference.state_dict().items()})
    main([str(word) for word in predict_words(path, fasta, tmp_path / "out.h5")])
    ids, vectors = rows_of(tmp_path / "out.h5")
    assert ids == ["sp|P0|X", "sp|P1|X", "sp|P2|X"]
    np.testing.assert_allclose(vectors, fair_esm_vectors(sequences, model), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_fewer_records_than_ranks_is_complete(predict, weights_file, write_fasta, tmp_path):
    fasta = write_fasta(tmp_path / "in.faa", ["ACDEF"])
    ended = predict(weights_file, fasta, tmp_path / "out.h5", ranks=3)
    assert ended.code == 0, ended.log
    assert rows_of(tmp_path / "out.h5")[0] == ["p0"]


@pytest.mark.slow
def test_torchrun_equals_fair_esm(
    start, predict_words, weights_file, write_fasta, proteins, fair_esm_vectors, tmp_path
):
    fasta = write_fasta(tmp_path / "in.faa", proteins)
    words = predict_words(weights_file, fasta, tmp_path / "out.h5", ranks=2)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2)
    command = start(*words, launcher=(*launcher, "-m", "virnucpro_pl"))
    ended = command.wait(90)
    assert ended.code == 0, ended.log
    command.assert_nothing_left()
    ids, vectors = rows_of(tmp_path / "out.h5")
    assert ids == [f"p{i}" for i in range(len(proteins))]
    np.testing.assert_allclose(vectors, fair_esm_vectors(proteins), rtol=0, atol=1e-5)


# Exit code 2 ----------------------------------------------------------------------------------


def only(folder, *names):
    left = {path.name for path in folder.iterdir() if not path.name.startswith("log-")}
    assert left == set(names)


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_bad_input_exits_2_with_place(predict, weights_file, tmp_path, ranks):
    (tmp_path / "in.faa").write_text(">a\nACD\n>b\nAC1D\n>a\nAC\n")
    output = tmp_path / "sub" / "folder" / "out.h5"
    ended = predict(weights_file, tmp_path / "in.faa", output, ranks=ranks)
    assert ended.code == 2, ended.log
    for part in ("in.faa", "(b): '1' at position 3", "(a): the id is that of"):
        assert ended.log.count(part) == 1, ended.log
    assert "Traceback" not in ended.log
    only(tmp_path, "in.faa")


@pytest.mark.slow
def test_usage_faults_exit_2_and_leave_nothing(
    start, predict_words, weights_file, write_fasta, tmp_path
):
    fasta = write_fasta(tmp_path / "in.faa", ["ACD"])
    cases = (
        ("VIRNUCPRO_DISABLE_FP16='tru'", (), {"VIRNUCPRO_DISABLE_FP16": "tru"}),
        ("VIRNUCPRO_DISABLE_PACKING='2'", (), {"VIRNUCPRO_DISABLE_PACKING": "2"}),
        ("absent.faa", ("--data.path", tmp_path / "absent.faa"), {}),
        ("no_such_option", ("--model.no_such_option", "1"), {}),
    )
    commands = [
        start(*predict_words(weights_file, fasta, tmp_path / f"{i}.h5", *more), env=env)
        for i, (_, more, env) in enumerate(cases)
    ]
    for command, (message, _, _) in zip(commands, cases, strict=True):
        ended = command.wait(90)
        assert ended.code == 2, ended.log
        assert message in ended.log
        assert "Traceback" not in ended.log
        command.assert_nothing_left()
    only(tmp_path, "in.faa")


@pytest.mark.slow
def test_existing_output_exits_2_and_is_untouched(predict, weights_file, write_fasta, tmp_path):
    fasta = write_fasta(tmp_path / "in.faa", ["ACD"])
    (tmp_path / "out.h5").write_text("precious")
    ended = predict(weights_file, fasta, tmp_path / "out.h5", ranks=2)
    assert ended.code == 2, ended.log
    assert "exists already; --writer.overwrite true" in ended.log
    assert (tmp_path / "out.h5").read_text() == "precious"
    only(tmp_path, "in.faa", "out.h5")


@pytest.mark.slow
def test_damaged_weights_exit_2_on_two_ranks(predict, weights_file, write_fasta, tmp_path):
    fasta = write_fasta(tmp_path / "in.faa", ["ACD"])
    (tmp_path / "w.pt").write_bytes(weights_file.read_bytes()[:5000])
    ended = predict(tmp_path / "w.pt", fasta, tmp_path / "out.h5", ranks=2)
    assert ended.code == 2, ended.log
    assert "w.pt" in ended.log
    assert "Traceback" not in ended.log
    only(tmp_path, "in.faa", "w.pt")


def test_malicious_weights_exit_2_and_run_nothing(predict_words, write_fasta, tmp_path):
    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    fasta = write_fasta(tmp_path / "in.faa", ["ACD"])
    torch.save({"cfg": {"model": Malicious()}, "model": {}}, tmp_path / "w.pt")
    with pytest.raises(SystemExit) as ended:
        main([str(w) for w in predict_words(tmp_path / "w.pt", fasta, tmp_path / "out.h5")])
    assert ended.value.code == 2
    only(tmp_path, "in.faa", "w.pt")


# Exit code 3 ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "bad", "rank"),
    [(1, {4, 6}, 0), (2, {0}, 0), (2, {5}, 1)],
    ids=["one", "on rank 0", "on rank 1"],
)
def test_unstable_records_exit_3_and_are_named(
    predict, poisoned_file, write_fasta, random_proteins, tmp_path, ranks, bad, rank
):
    # 150 residues and a budget of 400 tokens: packs (0, 1), (2, 3), (4, 5), (6, 7), in turn.
    proteins = random_proteins([150] * 8)
    for row in bad:
        proteins[row] = "W" + proteins[row][1:]
    if ranks == 2 and rank == 1:
        bad = {2}
        proteins[5], proteins[2] = proteins[2], proteins[5]
    fasta, output = write_fasta(tmp_path / "in.faa", proteins), tmp_path / "out.h5"
    ended = predict(poisoned_file, fasta, output, ranks=ranks)
    assert ended.code == 3, ended.log
    [line] = failures(output)
    first = min(bad)
    assert line["sequence_ids"] == [f"p{first}"]
    assert (line["rank"], line["status"]) == (rank, "numerical_instability")
    assert f"Sequences (1): p{first}" in ended.log
    assert "Traceback" not in ended.log
    assert not output.exists()
    kept = sum(len(read_part(path).rows) for path in Path(f"{output}.parts").glob("part-*.h5"))
    *_, error, last = ended.log.splitlines()
    if kept:
        assert f" Stopped: {kept} of 8 records are kept in {output}.parts; the same command" in last
    else:
        error = last
    assert "Numerical instability" in error


# Signals --------------------------------------------------------------------------------------


@pytest.fixture
def slow(tmp_path):
    """Launcher words of a command whose packs take a while."""
    script = tmp_path / "slow.py"
    script.write_text(
        "import os, time\n"
        "import virnucpro_pl.predict.embedders as e\n"
        "from virnucpro_pl.cli.main import main\n"
        "step = e.SequenceEmbedder.predict_step\n"
        "def note(what, batch):\n"
        "    with open(f'{what}-{os.getpid()}', 'a') as file:\n"
        "        file.write(''.join(f'{row}\\n' for row in batch.rows.tolist()))\n"
        "def slowly(self, batch, batch_idx=0):\n"
        "    note('begun', batch)\n"
        "    time.sleep(0.3)\n"
        "    found = step(self, batch, batch_idx)\n"
        "    note('done', batch)\n"
        "    return found\n"
        "e.SequenceEmbedder.predict_step = slowly\n"
        "main()\n"
    )
    return (str(script),)


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGTERM, id="SIGTERM"),
        pytest.param(signal.SIGINT, id="SIGINT", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_signal_commits_exits_and_resumes(
    start, predict_words, slow, weights_file, write_fasta, random_proteins, fair_esm_vectors,
    tmp_path, number, ranks,
):  # fmt: skip
    proteins = random_proteins([150] * 60)
    fasta, output = write_fasta(tmp_path / "in.faa", proteins), tmp_path / "out.h5"
    words = predict_words(weights_file, fasta, output, ranks=ranks)
    command = start(*words, launcher=slow)
    progress = Path(f"{output}.parts/ranks/rank-{ranks - 1}.progress")
    command.wait_for(progress.exists)
    # Ctrl-C reaches the whole group, `kill` only the process that it names.
    command.kill(number) if number == signal.SIGINT else os.kill(command.pid, number)
    ended = command.wait(15)
    assert ended.code == 128 + number, ended.log
    assert ended.log.count(": stopping once this pack is committed; again to stop at once") == 1
    command.assert_nothing_left()
    assert not output.exists()
    parts = list(Path(f"{output}.parts").iterdir())
    assert {part.name[:6] for part in parts if part.suffix == ".h5"} == {
        *("part-0" for _ in range(ranks))
    }
    assert len({part.name[:10] for part in parts if part.suffix == ".h5"}) == ranks
    begun, done = (
        sorted(int(row) for file in tmp_path.glob(f"{what}-*") for row in file.read_text().split())
        for what in ("begun", "done")
    )
    files = [part for part in parts if part.suffix == ".h5"]
    committed = sorted(row for file in files for row in read_part(file).rows.tolist())
    assert begun == done == committed  # no pack was left half done
    last = f" Stopped: {len(done)} of 60 records are kept in {output}.parts; the same command"
    assert last in ended.log.splitlines()[-1]
    again = start(*words)
    ended = again.wait(60)
    assert ended.code == 0, ended.log
    assert "Continuing: " in ended.log
    assert ended.log.splitlines()[-2].endswith(" 60 records: 60 vectors of 32 numbers")
    np.testing.assert_allclose(rows_of(output)[1], fair_esm_vectors(proteins), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_signal_while_reading_exits_143_and_leaves_nothing(
    start, predict_words, weights_file, write_fasta, tmp_path
):
    script = tmp_path / "slow.py"
    script.write_text(
        "import time\n"
        "import virnucpro_pl.input.sequence_datamodule as d\n"
        "from virnucpro_pl.cli.main import main\n"
        # Short ones: Python sleeps on to the end when a signal comes just before a sleep begins.
        "d.SequenceDataModule.read = lambda self, folder: [time.sleep(0.1) for _ in range(600)]\n"
        "main()\n"
    )
    fasta = write_fasta(tmp_path / "in.faa", ["ACD"])
    output = tmp_path / "out.h5"
    command = start(*predict_words(weights_file, fasta, output, ranks=2), launcher=(str(script),))
    command.wait_for(Path(f"{output}.parts/records").exists)
    os.kill(command.pid, signal.SIGTERM)
    assert command.wait(10).code == 143, command.log
    command.assert_nothing_left()
    assert "SIGTERM: stopping\n" in command.log
    # Rank 1 may say behind it that it has lost its connection.
    assert " Stopped: nothing is kept; the same command starts from the beginning" in command.log
    only(tmp_path, "in.faa", "slow.py")


@pytest.mark.slow
def test_torchrun_sigterm_commits_on_each_worker(
    start, predict_words, slow, weights_file, write_fasta, random_proteins, tmp_path
):
    fasta = write_fasta(tmp_path / "in.faa", random_proteins([150] * 60))
    output = tmp_path / "out.h5"
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, *slow)
    command = start(*predict_words(weights_file, fasta, output, ranks=2), launcher=launcher)
    command.wait_for(Path(f"{output}.parts/ranks/rank-1.progress").exists)
    os.kill(command.pid, signal.SIGTERM)
    assert command.wait(30).code == 1, command.log  # torchrun's own
    command.assert_nothing_left()
    parts = {path.name[:10] for path in Path(f"{output}.parts").glob("part-*.h5")}
    assert parts == {"part-00000", "part-00001"}
