"""Whole runs on several files, on standard input, on short records, and on nothing."""

import errno
import gzip
import json
import re
import subprocess

import h5py
import numpy as np
import pysam
import pytest

from virnucpro_pl import SequenceDataModule, load_embeddings
from virnucpro_pl.input.packed_datamodule import PackedDataModule
from virnucpro_pl.predict.embedders import SequenceEmbedder

RANKS = [1, pytest.param(2, marks=pytest.mark.slow)]
STATUS = 7
"""Column of contigs.tsv."""
CONTIGS = {"a": "GCCAACGGCCTG" * 30, "b": "GCA", "c": "TAATTAATTAA" * 9, "d": "AC"}


@pytest.fixture(scope="module")
def weights(weights_file, plain_dnabert_s, save_classifier, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    return [
        *("--model.esm2.weights", weights_file),
        *("--model.dnabert_s.weights", plain_dnabert_s(4).save(folder / "dnabert")),
        *("--classifier", save_classifier(folder / "c.pth", 48 + 32, 16)),
    ]


@pytest.fixture
def calls(run_main, weights, tmp_path):
    """Run virnucpro.yaml on some inputs: how it ended, and the folder."""

    def call(*words, output="calls"):
        fixed = ("--data.num_workers", 0, "--trainer.precision", 32, *weights)
        return run_main(*words, "-o", output, *fixed), tmp_path / output

    return call


@pytest.fixture
def vectors(run_main, weights_file, tmp_path):
    """Run esm2.yaml on some inputs: how it ended, and the file."""

    def call(*words, output="out.h5"):
        fixed = ("--data.num_workers", 0, "--trainer.precision", 32, "--model.weights")
        config = ("--config", "esm2.yaml", *fixed, weights_file)
        return run_main(*config, *words, "-o", output), tmp_path / output

    return call


def fasta(path, records):
    path.write_text("".join(f">{name}\n{letters}\n" for name, letters in records.items()))
    return path.name


def rows(path):
    """Rows of a table, without its header."""
    return [line.split("\t") for line in path.read_text().splitlines()[1:]]


def report(output):
    return json.loads(output.with_name(f"{output.name}.run.json").read_text())


# Several files ------------------------------------------------------------------------------------


def test_two_files_are_one_input_and_told_in_the_reports(calls, tmp_path):
    names = list(CONTIGS)
    first = fasta(tmp_path / "one.fa", {name: CONTIGS[name] for name in names[:1]})
    rest = {name: CONTIGS[name] for name in names[1:]}
    (tmp_path / "two.gz").write_bytes(
        gzip.compress("".join(f"@{n}\n{s}\n+\n{'I' * len(s)}\n" for n, s in rest.items()).encode())
    )
    ended, folder = calls(first, "two.gz", "--data.save_orfs", "true")
    assert ended.code == 0, ended.log
    assert [row[0] for row in rows(folder / "contigs.tsv")] == names
    inputs = [{"file": "one.fa", "records": 1}, {"file": "two.gz", "records": 3}]
    assert json.loads((folder / "summary.json").read_text())["inputs"] == inputs
    assert report(folder)["inputs"] == inputs
    assert (folder / "one_identified_protein.faa").exists()
    both = fasta(tmp_path / "both.fa", CONTIGS)
    ended, joined = calls(both, output="joined")
    assert ended.code == 0, ended.log
    for table in ("prediction_results.txt", "virus.fasta", "regions.tsv"):
        assert (joined / table).read_bytes() == (folder / table).read_bytes()
    for table in ("contigs.tsv", "chunks.tsv"):
        told = rows(folder / table)
        assert [row[:-1] for row in told] == rows(joined / table)
        assert {(row[0], row[-1]) for row in told} == {
            (name, "one.fa" if name == names[0] else "two.gz") for name in names
        }
    assert "inputs" not in report(joined)
    assert "inputs" not in json.loads((joined / "summary.json").read_text())


@pytest.mark.parametrize("name", ["a.faa", "b.faa", "link.faa"])
def test_no_input_is_ever_written(vectors, tmp_path, name):
    fasta(tmp_path / "a.faa", {"a": "MKV"})
    fasta(tmp_path / "b.faa", {"b": "MKV"})
    (tmp_path / "link.faa").symlink_to("b.faa")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    ended, _ = vectors("a.faa", "b.faa", "--writer.overwrite", "true", output=name)
    assert ended.code == 2
    assert "is never overwritten" in " ".join(ended.log.split())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a.faa", "a.faa"), "a.faa: the same file is given twice"),
        (("-", "-"), "standard input can be read only once"),
        (("a.faa", "-", "b.faa", "-"), "standard input can be read only once"),
        (("a.faa", "absent.faa"), "absent.faa cannot be read"),
        (("a.faa", "none.faa"), "none.faa is empty: --data.allow_empty true"),
        (("a.faa", "--data.min_length", "-1"), "--data.min_length must be at least 0"),
        (("a.faa", "--data.repeated_ids", "mate"), "--data.repeated_ids must be error, mates"),
    ],
)
def test_bad_inputs_exit_2_and_leave_nothing(vectors, tmp_path, words, message):
    fasta(tmp_path / "a.faa", {"a": "MKV"})
    fasta(tmp_path / "b.faa", {"b": "MKV"})
    (tmp_path / "none.faa").write_bytes(b"")
    ended, _ = vectors(*words)
    assert ended.code == 2
    assert message in " ".join(ended.log.split())
    assert "Traceback" not in ended.log
    assert {path.name for path in tmp_path.iterdir()} == {"a.faa", "b.faa", "none.faa"}


def test_list_of_files_in_a_config(vectors, tmp_path):
    fasta(tmp_path / "a.faa", {"a": "MKV"})
    fasta(tmp_path / "b, c.faa", {"b": "MK"})
    (tmp_path / "mine.yaml").write_text("data: {init_args: {path: ['b, c.faa', a.faa]}}\n")
    ended, output = vectors("--config", "mine.yaml")
    assert ended.code == 0, ended.log
    assert load_embeddings(output).ids == ["b", "a"]


# Standard input -----------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [bytes, gzip.compress], ids=["plain", "gz"])
@pytest.mark.parametrize("ranks", RANKS)
def test_standard_input_read_once_by_rank_0(
    start, predict_words, weights_file, random_proteins, fair_esm_vectors, tmp_path, ranks, wrap
):
    proteins = random_proteins([40, 3, 170, 80, 1, 300, 55])
    words = predict_words(weights_file, "-", tmp_path / "out.h5", ranks=ranks)
    command = start(*words, stdin=subprocess.PIPE)
    text = "".join(f"@p{i} x\n{s}\n+\n{'I' * len(s)}\n" for i, s in enumerate(proteins))
    command.process.communicate(wrap(text.encode()), timeout=90)
    ended = command.wait(90)
    assert ended.code == 0, ended.log
    command.assert_nothing_left()
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["sequence_ids"].asstr()[:].tolist() == [f"p{i}" for i in range(7)]
        np.testing.assert_allclose(
            file["embeddings"], fair_esm_vectors(proteins), rtol=0, atol=1e-5
        )


def test_standard_input_as_a_word_names_the_files_of_orfs(start, weights, tmp_path):
    command = start(
        *("predict", "-", "-o", "results", "--data.save_orfs", "true", "--data.num_workers", 0),
        *(*weights, "--trainer.accelerator", "cpu"),
        stdin=subprocess.PIPE,
    )
    command.process.communicate(f">a\n{CONTIGS['a']}\n".encode(), timeout=90)
    ended = command.wait(90)
    assert ended.code == 0, ended.log
    assert (tmp_path / "results" / "stdin_identified_protein.faa").exists()


def test_file_at_standard_input_is_not_overwritten(start, predict_words, weights_file, tmp_path):
    text = ">a\nMKV\n"
    (tmp_path / "a.faa").write_text(text)
    with (tmp_path / "a.faa").open("rb") as file:
        words = predict_words(weights_file, "-", "a.faa", "--writer.overwrite", "true")
        ended = start(*words, stdin=file).wait(60)
    assert ended.code == 2, ended.log
    assert "never overwritten" in ended.log
    assert (tmp_path / "a.faa").read_text() == text


# Repeated ids -------------------------------------------------------------------------------------


def test_mates_have_ids_of_their_own_in_every_output(calls, tmp_path):
    for mate in (1, 2):
        reads = {f"r{i} {mate}:N:0:ACGT": CONTIGS["a"][3 * i + mate :] for i in range(3)}
        fasta(tmp_path / f"R{mate}.fa", reads)
    inputs = ("R1.fa", "R2.fa", "--data.save_orfs", "true", "--writer.threshold", 0)
    ended, folder = calls(*inputs)
    assert ended.code == 2
    for word in ("record 1 (r0) of R2.fa: the id is that of record 1 of R1.fa", "seqkit rename",
                 "--data.repeated_ids mates", "--data.repeated_ids number"):  # fmt: skip
        assert word in ended.log
    ended, folder = calls(*inputs, "--data.repeated_ids", "mates")
    assert ended.code == 0, ended.log
    names = [f"r{i}/{mate}" for mate in (1, 2) for i in range(3)]
    assert [row[0] for row in rows(folder / "contigs.tsv")] == names
    orfs = [row[0] for row in rows(folder / "prediction_results.txt")]
    assert {orf.rpartition("_chunk_")[0] for orf in orfs} == {*names}
    assert "r2/2_chunk_1F1" in (folder / "R1_identified_protein.faa").read_text()
    assert ">r0/1\n" in (folder / "virus.fasta").read_text()
    for found in (report(folder), json.loads((folder / "summary.json").read_text())):
        assert found["input_counts"]["repeated_ids_renamed"] == 6


@pytest.mark.parametrize("ranks", RANKS)
def test_a_pair_in_any_container_gives_the_same_tables(start, weights, tmp_path, ranks):
    letters = CONTIGS["a"] * 2
    pairs = {f"r{i}": (letters[i : i + 150], letters[2 * i + 7 : 2 * i + 130]) for i in range(9)}
    mates = [{f"{name} {m}:N:0:ACGT": pair[m - 1] for name, pair in pairs.items()} for m in (1, 2)]
    (tmp_path / "R1.fq.gz").write_bytes(gzip.compress(fastq(mates[0])))
    (tmp_path / "R2.fq").write_bytes(fastq(mates[1]))
    both = zip(mates[0].items(), mates[1].items(), strict=True)
    (tmp_path / "both.fq").write_bytes(fastq(dict(read for pair in both for read in pair)))
    with pysam.AlignmentFile(tmp_path / "pairs.bam", "wb", header={"HD": {"VN": "1.6"}}) as bam:
        for name, pair in pairs.items():
            for flag, sequence in zip((77, 141), pair, strict=True):
                bam.write(unmapped(name, flag, sequence, bam.header))
    found = []
    for number, inputs in enumerate((["R1.fq.gz", "R2.fq"], ["both.fq"], ["pairs.bam"])):
        folder = tmp_path / f"calls{number}"
        words = ["predict", *inputs, "-o", folder, "--data.repeated_ids", "mates", *weights]
        words += ["--trainer.accelerator", "cpu", "--trainer.precision", 32]
        words += ["--trainer.devices", ranks, *(["--trainer.strategy", "ddp"] * (ranks > 1))]
        ended = start(*words).wait(120)
        assert ended.code == 0, ended.log
        tables = ("contigs.tsv", "chunks.tsv", "prediction_results.txt")
        found.append([sorted(row for row in rows(folder / table)) for table in tables])
    assert [row[0] for row in found[0][0]] == sorted(f"{n}/{m}" for n in pairs for m in (1, 2))
    for one, *others in zip(*found, strict=True):
        for other in others:
            for expected, row in zip(one, other, strict=True):
                assert without_input(row) == pytest.approx(without_input(expected), abs=1e-5)


def without_input(row):
    """Cells of a row, numbers as numbers, but for the column that says which file it is of."""
    cells = [cell for cell in row if cell not in ("R1.fq.gz", "R2.fq")]
    return [float(cell) if re.fullmatch(r"[\d.e-]+", cell) else cell for cell in cells]


def fastq(reads):
    return "".join(f"@{n}\n{s}\n+\n{'I' * len(s)}\n" for n, s in reads.items()).encode()


def unmapped(name, flag, letters, header):
    read = pysam.AlignedSegment(header)
    read.query_name, read.flag, read.query_sequence = name, flag, letters
    return read


def test_rows_of_a_run_are_not_continued_under_another_naming(vectors, tmp_path, monkeypatch):
    (tmp_path / "a.faa").write_text(">x\nMKV\n>x\nMKLL\n>y\nMKVV\n")
    options = ("a.faa", "--writer.commit_seconds", 0, "--data.tokens_per_batch", 8)
    step, done = SequenceEmbedder.predict_step, []

    def fail_at_third(self, batch, batch_idx=0):
        done.append(batch)
        if len(done) == 3:
            raise RuntimeError("power cut")
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(SequenceEmbedder, "predict_step", fail_at_third)
        ended, output = vectors(*options, "--data.repeated_ids", "mates")
    assert ended.code == 1
    ended, _ = vectors(*options, "--data.repeated_ids", "number")
    assert ended.code == 2
    assert "input_sha256 was" in ended.log
    ended, _ = vectors(*options, "--data.repeated_ids", "mates")
    assert ended.code == 0, ended.log
    assert "Continuing: " in ended.log
    assert load_embeddings(output).ids == ["x/1", "x/2", "y"]


# Short records ------------------------------------------------------------------------------------


def test_short_contigs_are_skipped_and_stay_in_the_tables(calls, tmp_path):
    name = fasta(tmp_path / "a.fa", CONTIGS | {"e": ""})
    whole, _ = calls(name, output="whole")
    assert whole.code == 0, whole.log
    ended, folder = calls(name, "--data.min_length", 99)
    assert ended.code == 0, ended.log
    found = {row[0]: row for row in rows(folder / "contigs.tsv")}
    assert list(found) == [*CONTIGS, "e"]
    for short, length in (("b", "3"), ("d", "2"), ("e", "0")):
        assert found[short][1:4] == [length, "0", "0"]
        assert found[short][STATUS] == "skipped"
    assert [found[name][STATUS] for name in "ac"] == ["ok", "no_orf"]
    unchanged = {row[0]: row for row in rows(tmp_path / "whole" / "contigs.tsv")}
    assert [found[name] for name in "ac"] == [unchanged[name] for name in "ac"]
    content = json.loads((folder / "summary.json").read_text())
    assert content["records_by_status"]["skipped"] == 3
    assert content["input_counts"]["shorter_than_min_length"] == 3
    assert content["min_length"] == 99
    assert "3 records of less than 99 bases are skipped" in ended.log


def test_contigs_all_too_short_are_a_table_of_skipped_ones(calls, tmp_path):
    name = fasta(tmp_path / "a.fa", CONTIGS)
    ended, folder = calls(name, "--data.min_length", 10_000)
    assert ended.code == 0, ended.log
    assert [row[STATUS] for row in rows(folder / "contigs.tsv")] == ["skipped"] * 4


def test_short_proteins_have_no_row_and_are_counted(vectors, tmp_path, fair_esm_vectors):
    fasta(tmp_path / "a.faa", {"a": "MK", "b": "MKLLV", "c": ""})
    fasta(tmp_path / "b.faa", {"d": "MKV", "e": "MKLV", "f": "ML"})
    ended, output = vectors("a.faa", "b.faa", "--data.min_length", 3)
    assert ended.code == 0, ended.log
    with load_embeddings(output) as embeddings:
        assert embeddings.ids == ["b", "d", "e"]
        assert embeddings.lengths.tolist() == [5, 3, 4]
        expected = fair_esm_vectors(["MKLLV", "MKV", "MKLV"])
        np.testing.assert_allclose(embeddings[0:3], expected, rtol=0, atol=1e-5)
        assert embeddings.attributes["min_length"] == 3
    content = report(output)
    assert content["input_counts"]["shorter_than_min_length"] == 3
    assert content["inputs"] == [{"file": "a.faa", "records": 1}, {"file": "b.faa", "records": 2}]
    assert "3 records of less than 3 letters are left out" in ended.log
    fasta(tmp_path / "c.faa", {"b": "MKLLV", "d": "MKV", "e": "MKLV"})
    _, other = vectors("c.faa", output="other.h5")
    assert report(output)["input_sha256"] == report(other)["input_sha256"]


def test_short_records_are_checked_before_they_are_left_out(vectors, tmp_path):
    fasta(tmp_path / "a.faa", {"a": "M1", "b": "MKLLV"})
    ended, _ = vectors("a.faa", "--data.min_length", 3)
    assert ended.code == 2
    assert "record 1 (a): '1' at position 2" in ended.log


def test_proteins_all_too_short_are_an_error_that_names_the_option(vectors, tmp_path):
    fasta(tmp_path / "a.faa", {"a": "MK", "b": "M"})
    ended, output = vectors("a.faa", "--data.min_length", 3)
    assert ended.code == 2
    assert "all records are shorter than --data.min_length 3" in ended.log
    ended, output = vectors("a.faa", "--data.min_length", 3, "--data.allow_empty", "true")
    assert ended.code == 0, ended.log
    assert load_embeddings(output)[0:0].shape == (0, 32)
    assert report(output)["input_counts"]["shorter_than_min_length"] == 2


# Nothing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("kind", ["calls", "vectors"])
def test_empty_input_where_allowed_is_a_whole_output_without_rows(
    start, predict_words, weights, weights_file, tmp_path, ranks, kind
):
    (tmp_path / "none.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "none.fa").write_bytes(b"\n")
    inputs = ("none.gz", "none.fa", "--data.allow_empty", "true")
    if kind == "vectors":
        words = predict_words(weights_file, *inputs[:1], "out.h5", ranks=ranks)
        words += ["--data.path", *inputs]
    else:
        words = ["predict", *inputs, "-o", "out", *weights, "--trainer.accelerator", "cpu"]
        words += ["--trainer.devices", ranks, *(["--trainer.strategy", "ddp"] * (ranks > 1))]
        words += ["--writer.save_embeddings", "true", "--data.save_orfs", "true"]
    command = start(*words)
    ended = command.wait(90)
    assert ended.code == 0, ended.log
    command.assert_nothing_left()
    if kind == "vectors":
        with load_embeddings(tmp_path / "out.h5") as embeddings:
            assert (len(embeddings), embeddings[0:0].shape) == (0, (0, 32))
            assert list(embeddings.ids) == []
        assert report(tmp_path / "out.h5")["totals"]["records"] == 0
        return
    for table in ("contigs.tsv", "prediction_results.txt", "prediction_results_highestscore.csv"):
        assert len((tmp_path / "out" / table).read_text().splitlines()) == 1
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["records"] == 0
    for name, width in (("esm2", 32), ("dnabert_s", 48)):
        with h5py.File(tmp_path / "out" / f"{name}.h5") as file:
            assert file["embeddings"].shape == (0, width)


def test_what_rank_0_has_read_and_a_rank_does_not_see_ends_with_the_folder(
    vectors, tmp_path, monkeypatch
):
    name, prepare = fasta(tmp_path / "in.faa", {"a": "ACD"}), PackedDataModule.prepare_data

    def lose(self):
        prepare(self)
        next(self._folder.glob("residues*")).unlink()  # a folder that this node has of its own

    monkeypatch.setattr(PackedDataModule, "prepare_data", lose)
    ended, output = vectors(name)
    assert ended.code == 2, ended.log
    assert "Traceback" not in ended.log
    assert "out.h5.parts/records, where rank 0 has put what it has read" in ended.log
    assert "must be one that all ranks see" in ended.log
    assert not output.exists()


@pytest.mark.parametrize(
    ("step", "code", "message"),
    [("group", 2, "What is read of the input cannot be kept"), ("plan", 1, "A disk has failed")],
)
def test_disk_that_fails_ends_with_its_message(vectors, tmp_path, monkeypatch, step, code, message):
    def fail(*arguments):
        raise OSError(errno.EIO, "Input/output error", "file.bin")

    monkeypatch.setattr(SequenceDataModule, step, fail)
    ended, output = vectors(fasta(tmp_path / "in.faa", {"a": "ACD"}))
    assert ended.code == code, ended.log
    assert "Traceback" not in ended.log
    assert f"{message}: [Errno 5] Input/output error: 'file.bin'" in ended.log
    assert not output.exists()
