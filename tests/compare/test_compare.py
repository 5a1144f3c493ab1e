"""The command `compare`: what it accepts, its gates and exit codes, what it writes."""

import json
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch

from virnucpro_pl.cli.main import main

IDS = [f"s/{i}ü_chunk_1F1" for i in range(40)]
CENTRED = ("--min-centred-cosine", "0.999")
TABLE = "Sequence_ID\tPrediction\tscore1\tscore2\n"
CALLS = "Modified_ID\tIs_Virus\n"


@pytest.fixture
def vectors():
    """Vectors that share one dominant channel, as those of ESM-2 do."""
    vectors = np.random.default_rng(0).normal(size=(len(IDS), 24)).astype(np.float32)
    vectors[:, 7] += 40
    return vectors


@pytest.fixture
def folder(write_embeddings, vectors, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    order = np.random.default_rng(1).permutation(len(IDS))
    names = [IDS[i] for i in order]
    half = vectors.astype(np.float16).astype(np.float32)
    write_embeddings(tmp_path / "a.h5", IDS, vectors, [10, 100, 300, 60] * 10, model="esm2_x")
    write_embeddings(tmp_path / "near.h5", names, half[order], model="esm2_x")
    write_embeddings(tmp_path / "permuted.h5", IDS, np.roll(vectors, 1, axis=0), model="esm2_x")
    write_embeddings(tmp_path / "fewer.h5", IDS[1:], vectors[1:], model="esm2_x")
    return tmp_path


def run(capsys, *words):
    """Exit code, stdout and stderr."""
    code = 0
    try:
        main(["compare", *map(str, words)])
    except SystemExit as ended:
        code = ended.code
    return code, *capsys.readouterr()


def test_near_files_meet_the_gate_and_all_is_printed(folder, capsys):
    code, out, err = run(capsys, "a.h5", "near.h5", *CENTRED, "--output", "c.json")
    assert code == 0
    for part in ("A: a.h5 (ESM-2, 40 rows)", "Compared: 40 records", "centred cosine: min",
                 "short, < 50", "medium, 50-200", "long, > 200", "Same nearest neighbour: ",
                 "plain cosine alone proves nothing"):  # fmt: skip
        assert part in out
    assert "Every gate is met" in err
    assert "Wrote c.json" in err
    written = json.loads((folder / "c.json").read_text())
    assert written["classes"]["all"]["records"] == 40
    assert written["classes"]["medium"]["records"] == 20
    assert written["classes"]["all"]["centred_cosine"]["min"] > 0.999
    assert written["gates"] == {"min_centred_cosine": 0.999}
    assert written["gates_unmet"] == []


def test_file_meets_the_strictest_gate_against_itself(folder, capsys):
    assert run(capsys, "a.h5", "a.h5", "--min-cosine", "1", "--min-centred-cosine", "1")[0] == 0


def test_permuted_rows_meet_a_plain_gate_of_0_9_and_fail_the_centred_one(folder, capsys):
    assert run(capsys, "a.h5", "permuted.h5", "--min-cosine", "0.9")[0] == 0
    code, _, err = run(capsys, "a.h5", "permuted.h5", *CENTRED, "--output", "c.json")
    assert code == 1
    assert "permuted.h5 is not accepted against a.h5: the lowest centred cosine is " in err
    assert "less than 0.999 (furthest apart: s/" in err
    assert "Traceback" not in err
    assert len(json.loads((folder / "c.json").read_text())["gates_unmet"]) == 1


@pytest.mark.parametrize("words", [("a.h5", "fewer.h5"), ("fewer.h5", "a.h5")])
@pytest.mark.parametrize("gate", [CENTRED, ("--min_cosine=0.5",)])
def test_missing_row_fails_any_gate_and_no_comparison(folder, capsys, words, gate):
    code, out, _ = run(capsys, *words)
    assert code == 0
    assert f"Only in {'A' if words[0] == 'a.h5' else 'B'}: 1: s/0ü_chunk_1F1" in out
    code, _, err = run(capsys, *words, *gate)
    assert code == 1
    assert "1 row(s) are only in" in err


@pytest.mark.slow
def test_exit_codes_of_the_process(folder):
    for words, code in (
        (("near.h5", *CENTRED), 0),
        (("permuted.h5", *CENTRED), 1),
        (("absent.h5",), 2),
    ):
        command = (sys.executable, "-m", "virnucpro_pl", "compare", "a.h5", *words)
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert ended.returncode == code, ended.stderr
        assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("listed", [True, False])
def test_nan_row_fails_a_gate_unless_the_file_lists_it(folder, capsys, listed):
    with h5py.File(folder / "near.h5", "r+") as file:
        file["embeddings"][3] = np.nan
        if listed:
            file["failed"] = [3]
    code, out, err = run(capsys, "a.h5", "near.h5", *CENTRED)
    assert "Compared: 39 records" in out
    assert code == (0 if listed else 1)
    assert ("Failed, so listed" in out) is listed
    assert ("1 row(s) of B are NaN or Inf" in err) is not listed


def test_no_record_in_common_fails_a_gate(folder, write_embeddings, capsys):
    write_embeddings(folder / "other.h5", ["x", "y"], np.ones((2, 24), np.float32))
    assert run(capsys, "a.h5", "other.h5")[0] == 0
    code, _, err = run(capsys, "a.h5", "other.h5", *CENTRED)
    assert code == 1
    assert "no record could be compared" in err


def test_original_and_broad_files_are_compared_with_ours(folder, vectors, capsys):
    torch.save({"proteins": IDS, "data": list(torch.from_numpy(vectors))}, "o_ESM.pt")
    torch.save({"ids": IDS, "data": torch.from_numpy(vectors)}, "o_merged.pt")
    with h5py.File("embeddings.h5", "w") as file:  # as virnucpro-broad leaves it
        file["embeddings"] = vectors
        file.create_dataset("sequence_ids", data=IDS, dtype=h5py.string_dtype())
    for name in ("o_ESM.pt", "embeddings.h5"):
        assert run(capsys, name, "near.h5", *CENTRED)[0] == 0
    code, out, err = run(capsys, "o_ESM.pt", "embeddings.h5")
    assert code == 0
    assert "short" not in out  # neither knows lengths
    assert "embeddings.h5 names no format and cannot tell whether it is complete" in err
    code, _, err = run(capsys, "o_merged.pt", "near.h5")
    assert code == 2
    assert "o_merged.pt holds merged, near.h5 ESM-2" in err


def test_tables_are_compared(folder, capsys):
    (folder / "a.txt").write_text(f"{TABLE}x\tvirus\t0.25\t0.75\ny\tothers\t1.0\t0.0\n")
    (folder / "b.txt").write_text(f"{TABLE}y\tothers\t0.75\t0.25\nx\tothers\t0.5\t0.5\n")
    code, out, _ = run(capsys, "a.txt", "b.txt", "--output", "c.json")
    assert code == 0
    assert "Label flips: 1 (0 viral only in B, 1 only in A)\n  x\n" in out
    assert "Largest score change: 0.25" in out
    assert "cosine" not in out
    assert json.loads((folder / "c.json").read_text())["flips"]["number"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.h5"], "b"),
        (["a.h5", "absent.h5"], "absent.h5: no such file"),
        (["a.h5", "dna.h5"], "a.h5 holds ESM-2, dna.h5 DNABERT-S: they are not of one kind"),
        (["a.h5", "wide.h5"], "a.h5 holds vectors of 24 numbers, wide.h5 of 3"),
        (["a.h5", "twice.h5"], "twice.h5 has 1 id(s) more than once: q"),
        (["a.h5", "unfinished.h5"], "unfinished.h5 was never completed"),
        (["a.h5", "t.txt"], "a.h5 holds ESM-2, t.txt labels of ORFs"),
        (["t.txt", "c.csv"], "t.txt holds labels of ORFs, c.csv calls of chunks"),
        (["t.txt", "t.txt", *CENTRED], "gates are for embeddings"),
        (["a.h5", "junk"], "junk is neither an embedding file"),
        (["a.h5", "junk.pt"], "junk.pt"),
        (["a.h5", "empty"], "empty is a folder without .pt files"),
        (["a.h5", "near.h5", "--min-cosine", "2"], "--min_cosine 2.0 is no cosine"),
        (["a.h5", "near.h5", "--min-cosine", "much"], "--min-cosine must be a number, not much"),
        (["a.h5", "near.h5", "--output", "no/c.json"], "the folder no does not exist"),
        (["a.h5", "near.h5", "--output", "a.h5"], "is an input of this run"),
        (["a.h5", "near.h5", "--gate", "1"], "gate"),
    ],
)
def test_files_and_options_that_do_not_fit_exit_2(
    folder, vectors, write_embeddings, capsys, words, message
):
    write_embeddings("dna.h5", IDS, vectors, model="DNABERT-S")
    write_embeddings("wide.h5", IDS, vectors[:, :3])
    write_embeddings("twice.h5", ["q", "q"], vectors[:2])
    write_embeddings("unfinished.h5", IDS, vectors, complete=False)
    (folder / "t.txt").write_text(f"{TABLE}x\tvirus\t0.25\t0.75\n")
    (folder / "c.csv").write_text(f"{CALLS}x\tTrue\n")
    for name in ("junk", "junk.pt"):
        (folder / name).write_bytes(b"\xff\xfejunk")
    (folder / "empty").mkdir()
    before = (folder / "a.h5").read_bytes()
    code, _, err = run(capsys, *words)
    assert code == 2
    assert message in err
    assert (folder / "a.h5").read_bytes() == before


def test_help_tells_gates_and_exit_codes(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for part in ("--min_centred_cosine", "exit code 1", "*_DNABERT_S.pt"):
        assert part in " ".join(out.split())
