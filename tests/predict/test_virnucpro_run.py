"""The whole job through the command line: VirNucPro's own files, ranks, faults and resuming."""

import json
import os
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pysam
import pytest
import torch

from virnucpro_pl.input.alphabets import PRINTABLE
from virnucpro_pl.input.orf_store import write_orfs
from virnucpro_pl.input.reader import read_records
from virnucpro_pl.models.esm2 import ESM2
from virnucpro_pl.predict.embedders import DNABERTSEmbedder

DATA = Path(__file__).parent.parent / "data" / "virnucpro"
TABLES = ("prediction_results.txt", "prediction_results_highestscore.csv")
LAST_DRAWN = 0.036083948
"""The last random number of the classifier with which VirNucPro wrote its tables."""
CODONS = ["GCC", "AAC", "GGC", "CTG", "ACC", "GCA", "CAG"]  # few stops in any frame


@pytest.fixture(scope="module")
def contigs(tmp_path_factory):
    """Nine records: one to five chunks, one too short, one without an ORF."""
    generator = np.random.default_rng(0)
    lengths = (1400, 90, 501, 2300, 33, 700, 1000)
    records = ["".join(generator.choice(CODONS, n // 3 + 1))[:n] for n in lengths]
    records[3:3] = ["AC", "TAATTAATTAA" * 9]
    path = tmp_path_factory.mktemp("contigs") / "some.contigs.fna"
    path.write_text("".join(f">r{i} text\n{s}\n" for i, s in enumerate(records)))
    return path


@pytest.fixture(scope="module")
def dnabert_folder(plain_dnabert_s, tmp_path_factory):
    return plain_dnabert_s(4).save(tmp_path_factory.mktemp("weights") / "dnabert")


@pytest.fixture(scope="module")
def classifier_file(save_classifier, tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("weights") / "c.pth", 48 + 32, 16)


@pytest.fixture
def words(contigs, weights_file, dnabert_folder, classifier_file):
    """Words of the whole job with small networks in FP32, its packs small."""
    return [
        *("--config", "virnucpro.yaml", "--data.path", contigs, "--data.num_workers", 0),
        *("--data.tokens_per_batch", 600, "--trainer.precision", 32),
        *("--model.esm2.weights", weights_file, "--model.dnabert_s.weights", dnabert_folder),
        *("--model.classifier", classifier_file, "--writer.commit_seconds", 0),
    ]


def contents(folder):
    """Bytes of the tables, and the numbers of the embedding files, by name."""
    files = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".h5":
            with h5py.File(path) as file:
                files[path.name] = file["embeddings"][()].tobytes()
        elif path.name != "summary.json":
            files[path.name] = path.read_bytes()
    return files


@pytest.fixture(scope="module")
def published_classifier(save_classifier, tmp_path_factory):
    """The seeded classifier with which VirNucPro wrote its tables."""
    path = tmp_path_factory.mktemp("weights") / "500_model.pth"
    module = []
    save_classifier(path, edit=module.append)
    last = module[0].hidden_layer.bias[-1].item()
    assert last == pytest.approx(LAST_DRAWN, abs=1e-6), "torch draws other random numbers"
    return path


def labels_and_scores(table):
    """Everything but the scores, header included, and the scores (N, 2)."""
    header, *rows = [line.split("\t") for line in table.split("\n")]
    return [header, *(row[:2] for row in rows)], [list(map(float, row[2:])) for row in rows[:-1]]


@pytest.mark.parametrize("size", [300, 500])
@pytest.mark.parametrize("name", ["edge", "gaps", "lengths"])
def test_classify_writes_the_tables_of_virnucpro(
    run_main, published_classifier, formula_vectors, write_embeddings, tmp_path, name, size
):
    store = write_orfs(read_records(DATA / f"{name}.fa", PRINTABLE, tmp_path), size)
    rows = np.arange(len(store))
    paths = []
    for kind, width in (("nucleotide", 768), ("protein", 2560)):
        strings = [letters.decode() for letters in store.sequences(kind, rows)]
        order = rows if kind == "nucleotide" else rows[::-1]  # joined by id, not by position
        ids, vectors = store.ids(order), formula_vectors(strings, width)[order]
        paths.append(write_embeddings(tmp_path / f"{kind}.h5", ids, vectors))
    ended = run_main(
        *("--config", "classify.yaml", "--data.dnabert_s", paths[0], "--data.esm2", paths[1]),
        *("--data.num_workers", 0, "--model.classifier", published_classifier),
        *("--writer.path", "calls"),
    )
    assert ended.code == 0, ended.log
    stem = f"{name}_{size}" if name == "lengths" else name
    made, theirs = (tmp_path / "calls" / TABLES[0]).read_text(), (DATA / f"{stem}.txt").read_text()
    # Processors sum in different orders. How numbers are written: output/test_tables.py.
    labels, scores = zip(*map(labels_and_scores, (made, theirs)), strict=True)
    assert labels[0] == labels[1]
    np.testing.assert_allclose(*scores, rtol=0, atol=1e-6)
    csv = (tmp_path / "calls" / TABLES[1]).read_bytes()
    assert csv == (DATA / f"{stem}.csv").read_bytes()


def test_fused_run_equals_three_steps(run_main, words, weights_file, dnabert_folder, tmp_path):
    steps = [
        (*words, "--writer.path", "calls", "--data.save_orfs", "true"),
        (
            *("--config", "dnabert_s.yaml", "--model.weights", dnabert_folder),
            *("--data.path", "calls/some.contigs_identified_nucleotide.fa"),
            *("--writer.path", "dna.h5", "--trainer.precision", 32),
        ),
        (
            *("--config", "esm2.yaml", "--model.weights", weights_file),
            *("--data.path", "calls/some.contigs_identified_protein.faa"),
            *("--writer.path", "esm.h5", "--trainer.precision", 32),
        ),
        (
            *("--config", "classify.yaml", "--data.dnabert_s", "dna.h5", "--data.esm2", "esm.h5"),
            *("--model.classifier", words[words.index("--model.classifier") + 1]),
            *("--writer.path", "again"),
        ),
    ]
    for step in steps:
        ended = run_main(*step)
        assert ended.code == 0, ended.log
    fused, again = (
        [line.split("\t") for line in (tmp_path / f / TABLES[0]).read_text().splitlines()[1:]]
        for f in ("calls", "again")
    )
    assert [row[0] for row in fused] == [row[0] for row in again]
    assert len(fused) > 60
    scores = np.array([[row[2:] for row in table] for table in (fused, again)], np.float64)
    assert np.abs(scores[0] - scores[1]).max() < 1e-6
    assert scores[0, :, 1].std() > 0.001


@pytest.mark.slow
def test_one_and_two_ranks_write_the_same_tables(start, run_main, words, tmp_path):
    more = ("--writer.save_embeddings", "true", "--data.save_orfs", "true", "--writer.threshold", 0)
    assert run_main(*words, *more, "--writer.path", "one").code == 0
    command = start(
        *("predict", *words, *more, "--writer.path", "two"),
        *("--trainer.accelerator", "cpu", "--trainer.devices", 2, "--trainer.strategy", "ddp"),
    )
    ended = command.wait(90)
    assert ended.code == 0, ended.log
    command.assert_nothing_left()
    one, two = (contents(tmp_path / name) for name in ("one", "two"))
    assert one == two
    assert len(one) == 11
    assert one["virus.fasta"]
    report = json.loads((tmp_path / "two.run.json").read_text())
    assert min(rank["packs"] for rank in report["per_rank"]) > 2


@pytest.mark.slow
def test_two_ranks_without_any_orf_exit_0(start, words, tmp_path):
    (tmp_path / "none.fa").write_text(">a\nTAATTAATTAATTAATTAATTAATTAATTA\n>b\nA\n")
    command = start(
        *("predict", *words, "--data.path", "none.fa", "--writer.path", "calls"),
        *("--trainer.accelerator", "cpu", "--trainer.devices", 2, "--trainer.strategy", "ddp"),
    )
    ended = command.wait(90)
    assert ended.code == 0, ended.log
    command.assert_nothing_left()
    assert [len((tmp_path / "calls" / t).read_text().splitlines()) for t in TABLES] == [1, 1]
    records = (tmp_path / "calls" / "contigs.tsv").read_text().splitlines()[1:]
    assert [line.split("\t")[7] for line in records] == ["no_orf", "too_short"]


@pytest.fixture
def interrupted(run_main, words, monkeypatch):
    """Run until the third pack and fail there: what is committed lies in calls.parts."""
    forward, calls = DNABERTSEmbedder.forward, []

    def fail_at_third(self, batch):
        calls.append(batch)
        if len(calls) == 3:
            raise RuntimeError("power cut")
        return forward(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(DNABERTSEmbedder, "forward", fail_at_third)
        ended = run_main(*words, "--writer.path", "calls")
    assert ended.code == 1
    return calls


def test_interrupted_run_continues_to_the_same_tables(run_main, words, interrupted, tmp_path):
    assert not (tmp_path / "calls").exists()
    assert run_main(*words, "--writer.path", "whole").code == 0
    # What follows from the scores may be asked for otherwise; only the rest is computed.
    assert run_main(*words, "--writer.path", "calls", "--writer.threshold", 0.7).code == 0
    report = json.loads((tmp_path / "calls.run.json").read_text())
    assert report["resumed_records"] == sum(len(batch.ids) for batch in interrupted[:2])
    calls, whole = (contents(tmp_path / name) for name in ("calls", "whole"))
    assert {name: calls[name] for name in TABLES} == {name: whole[name] for name in TABLES}
    assert not (tmp_path / "calls.parts").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [("classifier_sha256", "other"), ("columns", "true"), ("input_sha256", "300")],
)
def test_interrupted_run_does_not_continue_with_other_scores(
    run_main, words, interrupted, seeded_classifier, tmp_path, name, value
):
    torch.save(seeded_classifier(80, 16, seed=1), tmp_path / "other.pt")
    change = {
        "classifier_sha256": ("--model.classifier", tmp_path / "other.pt"),
        "columns": ("--writer.save_embeddings", value),
        "input_sha256": ("--data.length", value),
    }[name]
    ended = run_main(*words, "--writer.path", "calls", *change)
    assert ended.code == 2
    assert f"{name} was" in ended.log
    assert list((tmp_path / "calls.parts").glob("part-*.h5"))


def test_unstable_orfs_exit_3_and_are_named(run_main, words, poisoned_file, tmp_path):
    (tmp_path / "in.fa").write_text(">good\nGCCAACGCCAAC\n>bad\nGGCTGGTGGTGG\n")
    ended = run_main(
        *(*words, "--data.path", "in.fa", "--model.esm2.weights", poisoned_file),
        *("--writer.path", "calls"),
    )
    assert ended.code == 3
    [line] = (tmp_path / "calls.failures.jsonl").read_text().splitlines()
    failure = json.loads(line)
    store = write_orfs(read_records(tmp_path / "in.fa", PRINTABLE, tmp_path), 500)
    rows = np.arange(len(store))
    proteins = dict(zip(store.ids(rows), store.sequences("protein", rows), strict=True))
    expected = [name for name, protein in proteins.items() if b"W" in protein]
    assert failure["sequence_ids"] == expected
    assert 0 < len(expected) < len(proteins)
    assert "Numerical instability in ESM-2, 3 layers of 32:" in ended.log
    assert expected[0] in ended.log
    assert not (tmp_path / "calls").exists()


class Evil:
    """Unpickled, it would make a file."""

    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_malicious_classifier_makes_nothing_and_exits_2(run_main, words, tmp_path):
    torch.save({"hidden_layer.weight": Evil()}, tmp_path / "evil.pth")
    before = {*tmp_path.iterdir()}
    ended = run_main(*words, "--model.classifier", "evil.pth", "--writer.path", "calls")
    assert ended.code == 2
    assert "posix.system" in ended.log
    assert "Traceback" not in ended.log
    assert {*tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--writer.threshold", 1.5), "a number from 0 to 1"),
        (("--data.length", 2), "at least 3, a codon"),
        (("--model.classifier", "wide.pt"), "takes 81 features, .* together give 80"),
        (("--model.classifier", "nan.pt"), "not all numbers are finite in output_layer.bias"),
        (("--data.path", "dup.fa"), r"record 2 \(a\): the id is that of record 1"),
        (("--data.path", "gap.fa"), r"record 1 \(a\): '-' at position 2 is no base"),
        (("--data.path", "empty.fa"), "empty.fa is empty"),
        (("--writer.path", "."), ""),
    ],
)
def test_bad_usage_exits_2_and_writes_nothing(
    run_main, words, seeded_classifier, tmp_path, change, message
):
    torch.save(seeded_classifier(81, 16), tmp_path / "wide.pt")
    state = seeded_classifier(80, 16)
    state["output_layer.bias"] *= torch.nan
    torch.save(state, tmp_path / "nan.pt")
    (tmp_path / "dup.fa").write_text(">a\nACG\n>a b\nACG\n")
    (tmp_path / "gap.fa").write_text(">a\nA-G\n>b\nACG\n")
    (tmp_path / "empty.fa").write_text("")
    before = {*tmp_path.iterdir()}
    ended = run_main(*words, "--writer.path", "calls", *change)
    assert ended.code == 2
    assert "Traceback" not in ended.log
    assert re.search(message, ended.log), ended.log
    assert {*tmp_path.iterdir()} == before


def calls_without(run_main, words, tmp_path, *more):
    """Calls of two records of which the second has an ORF with a W that cannot be embedded."""
    (tmp_path / "in.fa").write_text(">good\nGCCAACGCCAAC\n>bad\nGGCTGGTGGTGG\n")
    ended = run_main(*words, "--data.path", "in.fa", "--writer.path", "calls", *more)
    assert ended.code == 0, ended.log
    rows = [line.split("\t") for line in (tmp_path / "calls" / TABLES[0]).read_text().splitlines()]
    lost = [row[0] for row in rows[1:] if row[1] == "NA"]
    store = write_orfs(read_records(tmp_path / "in.fa", PRINTABLE, tmp_path), 500)
    every = np.arange(len(store))
    proteins = zip(store.ids(every), store.sequences("protein", every), strict=True)
    return ended, lost, [name for name, protein in proteins if b"W" in protein]


@pytest.mark.parametrize("policy", ["skip", "fp32"])
def test_unstable_orfs_left_out_are_named_and_their_records_counted(
    run_main, words, poisoned_file, tmp_path, policy
):
    ended, lost, expected = calls_without(
        run_main, words, tmp_path, "--model.esm2.weights", poisoned_file,
        "--model.esm2.on_instability", policy,
    )  # fmt: skip
    assert lost == expected
    assert expected
    [line] = (tmp_path / "calls.failures.jsonl").read_text().splitlines()
    assert json.loads(line)["sequence_ids"] == expected
    summary = json.loads((tmp_path / "calls" / "summary.json").read_text())
    assert summary["orfs_skipped"] == {"embedding_not_finite": len(expected)}
    assert summary["records_scored_in_part"] == 2
    assert "2 records are called without some of their ORFs" in ended.log
    assert f"{len(expected)} FAILED rows are NaN" in ended.log
    rows = (tmp_path / "calls" / "contigs.tsv").read_text().splitlines()[1:]
    assert [row.split("\t")[0] for row in rows] == ["good", "bad"]


def test_out_of_memory_in_one_network_halves_packs_and_keeps_every_orf(
    run_main, words, tmp_path, monkeypatch
):
    whole = run_main(*words, "--writer.path", "whole")
    assert whole.code == 0, whole.log
    forward, seen = ESM2.forward, []

    def cramped(self, tokens, *arguments, **options):
        seen.append(len(tokens))
        if len(tokens) > 400:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 TiB")
        return forward(self, tokens, *arguments, **options)

    monkeypatch.setattr(ESM2, "forward", cramped)
    ended = run_main(*words, "--writer.path", "calls")
    assert ended.code == 0, ended.log
    assert ended.log.count("out of memory with") == 1
    assert sum(count > 400 for count in seen) == 2  # in one go, then alone; never again
    tables = [(tmp_path / f / TABLES[0]).read_text().splitlines()[1:] for f in ("whole", "calls")]
    names, scores = zip(*[zip(*[r.split("\t")[::3] for r in t], strict=True) for t in tables],
                        strict=True)  # fmt: skip
    assert names[0] == names[1]
    np.testing.assert_allclose(*(np.array(s, float) for s in scores), rtol=0, atol=1e-6)


def test_max_length_cuts_orfs_in_both_models_alike(run_main, words, tmp_path):
    ended = run_main(
        *(*words, "--data.max_length", 20, "--writer.save_embeddings", "true"),
        *("--writer.path", "calls"),
    )
    assert ended.code == 0, ended.log
    assert "are cut to 20 letters" in ended.log
    for name, longest in (("esm2", 20), ("dnabert_s", 60)):
        with h5py.File(tmp_path / "calls" / f"{name}.h5") as file:
            assert file["lengths"][()].max() == longest


# What goes in -------------------------------------------------------------------------------------


def tables(folder):
    """Bytes of every table of calls."""
    return {n: (folder / n).read_bytes() for n in (*TABLES, "contigs.tsv", "virus.fasta")}


def test_rna_gives_the_calls_of_its_dna(run_main, words, contigs, tmp_path):
    lines = contigs.read_text().splitlines(keepends=True)
    rna = [line if line[0] == ">" else line.replace("T", "U") for line in lines]
    (tmp_path / "rna.fa").write_text("".join(rna))
    common = (*words, "--writer.threshold", 0, "--writer.path")
    assert run_main(*common, "dna").code == 0
    ended = run_main(*common, "rna", "--data.path", "rna.fa")
    assert ended.code == 0, ended.log
    assert tables(tmp_path / "rna") == tables(tmp_path / "dna")
    count = sum(line.count("U") for line in rna if line[0] != ">")
    assert f"{count} U (RNA) are read as T" in ended.log
    for path, expected in (("rna/summary.json", count), ("dna.run.json", 0)):
        report = json.loads((tmp_path / path).read_text())
        assert report["input_counts"] == {"u_read_as_t": expected}


def test_records_without_letters_are_rows_that_are_too_short(run_main, words, tmp_path):
    (tmp_path / "in.fa").write_text(">none\n>some\nGCCAACGCCAAC\n>last\n\n")
    ended = run_main(*words, "--data.path", "in.fa", "--writer.path", "calls")
    assert ended.code == 0, ended.log
    rows = [r.split("\t") for r in (tmp_path / "calls/contigs.tsv").read_text().splitlines()[1:]]
    assert [(row[0], row[1], row[7]) for row in rows] == [
        ("none", "0", "too_short"), ("some", "12", "ok"), ("last", "0", "too_short"),
    ]  # fmt: skip


@pytest.mark.parametrize("config", ["virnucpro.yaml", "dnabert_s.yaml", "esm2.yaml"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (">A\nACGAAA>B second\nACGTTT\n", "record 1 (A): '>' at position 7 is no"),
        (">A\nAC-GT*\n", "is no"),
    ],
)
def test_joined_records_and_gaps_exit_2(run_main, words, tmp_path, config, text, message):
    (tmp_path / "in.fa").write_text(text)
    if config != "virnucpro.yaml":
        words = ("--config", config, "--model.weights", "random")
    ended = run_main(*words, "--data.path", "in.fa", "--writer.path", "calls")
    assert ended.code == 2
    assert message in ended.log
    assert [path.name for path in tmp_path.iterdir()] == ["in.fa"]


@pytest.mark.parametrize(
    ("config", "letters", "advice"),
    [
        ("virnucpro.yaml", "MKVLAAGIVGLPEEQFWTERSCHLIFQN", "--config esm2.yaml"),
        ("dnabert_s.yaml", "MKVLAAGIVGLPEEQFWTERSCHLIFQN", "--config esm2.yaml"),
        ("esm2.yaml", "ACGTTGCAN" * 5, "--config virnucpro.yaml"),
    ],
)
def test_the_other_molecule_exits_2_before_any_weights(
    run_main, words, tmp_path, config, letters, advice
):
    (tmp_path / "in.fa").write_text("".join(f">r{i}\n{letters}\n" for i in range(30)))
    if config != "virnucpro.yaml":
        words = ("--config", config, "--model.weights", "absent.pt")
    ended = run_main(*words, "--data.path", "in.fa", "--writer.path", "calls")
    assert ended.code == 2
    [error] = [line for line in ended.log.splitlines() if " ERROR " in line]
    assert advice in error
    assert "absent.pt" not in ended.log
    assert [path.name for path in tmp_path.iterdir()] == ["in.fa"]


def test_letters_of_the_original_are_kept_where_asked(run_main, words, tmp_path):
    (tmp_path / "in.fa").write_text(">a\nAUGGCCUAAGCC-*1\n>b\nATGGCC\n")
    ended = run_main(
        *(*words, "--data.path", "in.fa", "--data.letters", "original", "--writer.path", "calls"),
        *("--data.save_orfs", "true"),
    )
    assert ended.code == 0, ended.log
    assert "a codon with one yields no residue: 2 U, 1 -, 1 *, 1 1" in ended.log
    nucleotides = (tmp_path / "calls/in_identified_nucleotide.fa").read_text()
    assert nucleotides.startswith(">a_chunk_1F1\nAUGGCCU\n")


@pytest.fixture
def reads(tmp_path):
    """The same 40 reads as `reads.fq` and, unmapped and of single ends, as `reads.bam`."""
    letters = np.random.default_rng(3).choice(CODONS, (40, 60))
    head = pysam.AlignmentHeader.from_dict({"HD": {"VN": "1.6"}})
    with (
        (tmp_path / "reads.fq").open("w") as fastq,
        pysam.AlignmentFile(tmp_path / "reads.bam", "wb", header=head) as bam,
    ):
        for number, sequence in enumerate(map("".join, letters)):
            read = pysam.AlignedSegment(head)
            read.query_name, read.flag, read.query_sequence = f"r{number}", 4, sequence
            read.query_qualities = pysam.qualitystring_to_array("I" * len(sequence))
            bam.write(read)
            fastq.write(f"@r{number} words\n{sequence}\n+\n{'I' * len(sequence)}\n")
    return "reads.fq", "reads.bam"


def test_unmapped_bam_gives_the_calls_of_its_fastq(run_main, words, reads, tmp_path):
    hashes = set()
    for path in reads:
        output = f"{path}.calls"
        more = ("--data.path", path, "--writer.threshold", 0, "--writer.path", output)
        ended = run_main(*words, *more)
        assert ended.code == 0, ended.log
        hashes.add(json.loads((tmp_path / output / "summary.json").read_text())["input_sha256"])
    fastq, bam = (tables(tmp_path / f"{path}.calls") for path in reads)
    assert fastq == bam
    assert bam["contigs.tsv"].count(b"\tok\t") == 40
    assert len(hashes) == 1


@pytest.mark.slow
def test_two_ranks_read_unmapped_bam_as_one_reads_its_fastq(
    run_main, start, words, reads, tmp_path
):
    fastq, bam = reads
    assert run_main(*words, "--data.path", fastq, "--writer.path", "one").code == 0
    command = start(
        *("predict", *words, "--data.path", bam, "--writer.path", "two"),
        *("--trainer.accelerator", "cpu", "--trainer.devices", 2, "--trainer.strategy", "ddp"),
    )
    ended = command.wait(90)
    assert ended.code == 0, ended.log
    command.assert_nothing_left()
    assert tables(tmp_path / "one") == tables(tmp_path / "two")


def test_bam_where_proteins_belong_exits_2(run_main, reads, tmp_path):
    ended = run_main(
        *("--config", "esm2.yaml", "--model.weights", "absent.pt"),
        *("--data.path", reads[1], "--writer.path", "calls"),
    )
    assert ended.code == 2
    assert "reads.bam holds DNA, it seems, not protein" in ended.log
    assert "absent.pt" not in ended.log


# Chunks of another length than the classifier's ---------------------------------------------------


@pytest.fixture
def classifier_of_300(seeded_classifier, tmp_path):
    """A checkpoint that knows that it was trained on chunks of 300 bases."""
    state = {f"classifier.{name}": value for name, value in seeded_classifier(80, 16).items()}
    torch.save({"state_dict": state, "chunk_length": 300}, tmp_path / "best.ckpt")
    return "best.ckpt"


def test_chunks_of_another_length_than_trained_on_exit_2_before_weights(
    run_main, words, classifier_of_300, tmp_path
):
    common = (*words, "--model.classifier", classifier_of_300, "--writer.path", "calls")
    ended = run_main(*common, "--model.esm2.weights", "absent.pt")
    assert ended.code == 2
    assert "best.ckpt was trained on chunks of 300 bases, and these are of 500" in ended.log
    assert "--data.length 300" in ended.log
    assert "absent.pt" not in ended.log
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("calls")]
    ended = run_main(*common, "--data.length", 300, "--writer.save_embeddings", "true")
    assert ended.code == 0, ended.log
    for name in ("dnabert_s", "esm2"):
        with h5py.File(tmp_path / "calls" / f"{name}.h5") as file:
            assert file.attrs["chunk_length"] == 300


@pytest.mark.slow
@pytest.mark.parametrize("config", ["virnucpro.yaml", "classify.yaml"])
def test_two_ranks_with_chunks_of_another_length_exit_2(
    start, words, classifier_of_300, write_embeddings, tmp_path, config
):
    if config == "classify.yaml":
        ids, paths = ["a_chunk_1F1", "a_chunk_1F2"], []
        for name, width in (("dnabert_s", 48), ("esm2", 32)):
            vectors = np.zeros((2, width), np.float32)
            path = write_embeddings(tmp_path / f"{name}.h5", ids, vectors, chunk_length=500)
            paths += [f"--data.{name}", path]
        words = ("--config", config, *paths)
    command = start(
        *("predict", *words, "--model.classifier", classifier_of_300, "--writer.path", "calls"),
        *("--trainer.accelerator", "cpu", "--trainer.devices", 2, "--trainer.strategy", "ddp"),
    )
    ended = command.wait(90)
    command.assert_nothing_left()
    assert ended.code == 2, ended.log
    assert ended.log.count("was trained on chunks of 300 bases, and these are of 500") == 1
    assert "Traceback" not in ended.log
    assert "Loaded" not in ended.log
    assert not (tmp_path / "calls").exists()


def test_name_of_a_classifier_for_other_chunks_is_warned_of_once(
    run_main, words, classifier_file, tmp_path
):
    shutil.copy(classifier_file, tmp_path / "300_model.pth")
    common = (*words, "--model.classifier", "300_model.pth", "--writer.path")
    ended = run_main(*common, "calls")
    assert ended.code == 0, ended.log
    [warning] = [line for line in ended.log.splitlines() if "300_model.pth is for chunks" in line]
    assert "WARNING" in warning
    assert "300 bases, by its name, and these are of 500" in warning
    assert "--data.length 300" in warning
    assert ended.log.index(warning) < ended.log.index("Loaded")
    ended = run_main(*common, "again", "--data.length", 300)
    assert ended.code == 0, ended.log
    assert "by its name" not in ended.log
