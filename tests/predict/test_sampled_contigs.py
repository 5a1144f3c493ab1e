"""Long contigs by a sample of their chunks, through the command line; what reads the results."""

import json
import re

import h5py
import numpy as np
import pytest

from virnucpro_pl.cli.main import main
from virnucpro_pl.predict.embedders import DNABERTSEmbedder

MOST = 5
SAMPLES = {"long": {1, 8, 15, 22, 30}, "hidden": {1, 3, 6, 9, 12}, "closed": {1, 2, 4, 6, 8}}
"""Chunks of a sample of five: of 30, of 12 and of 8."""
PREDICTIONS, HIGHEST = "prediction_results.txt", "prediction_results_highestscore.csv"
ORF = re.compile(r"(.+)_chunk_(\d+)[FR][123]")
CODONS = ["GCC", "AAC", "GGC", "CTG", "ACC", "GCA", "CAG"]  # few stops in any frame


def open_letters(bases, seed):
    codons = np.random.default_rng(seed).choice(CODONS, bases // 3 + 1)
    return "".join(codons)[:bases]


def closed_letters(bases):
    return ("TAATTAATTAA" * (bases // 11 + 1))[:bases]


RECORDS = {
    "long": open_letters(14_900, 0),
    "short": open_letters(1_400, 1),
    # Its second chunk of twelve alone has open reading frames, and is not sampled.
    "hidden": closed_letters(500) + open_letters(500, 2) + closed_letters(5_000),
    "closed": closed_letters(4_000),
    "tiny": "AC",
}


@pytest.fixture
def words(weights_file, plain_dnabert_s, save_classifier, tmp_path):
    """Words of the whole job with small networks in FP32; its classifier calls most ORFs virus."""

    def lean_to_virus(module):
        module.output_layer.bias.data += module.output_layer.bias.new_tensor([-1.0, 1.0])

    (tmp_path / "in").mkdir()
    fasta = tmp_path / "in" / "some.fna"
    fasta.write_text("".join(f">{name}\n{letters}\n" for name, letters in RECORDS.items()))
    dnabert = plain_dnabert_s(4).save(tmp_path / "in" / "dnabert")
    classifier = save_classifier(tmp_path / "in" / "c.pth", 48 + 32, 16, edit=lean_to_virus)
    return [
        *("--config", "virnucpro.yaml", "--data.path", fasta, "--data.num_workers", 0),
        *("--data.tokens_per_batch", 2_000, "--trainer.precision", 32),
        *("--model.esm2.weights", weights_file, "--model.dnabert_s.weights", dnabert),
        *("--model.classifier", classifier, "--writer.commit_seconds", 0),
        *("--writer.bed", "true", "--writer.region_chunks", 1),
    ]


@pytest.fixture
def call(run_main, words, tmp_path):
    """Call the records; the folder of calls, and what was said."""

    def run(name, *more):
        ended = run_main(*words, "--writer.path", name, *more)
        assert ended.code == 0, ended.log
        return tmp_path / name, ended.log

    return run


def table(path):
    """Rows of a table, each by the names of its header."""
    header, *rows = [line.split("\t") for line in path.read_text().splitlines()]
    return [dict(zip(header, row, strict=True)) for row in rows]


def contigs_of(folder):
    return {row["seq_name"]: row for row in table(folder / "contigs.tsv")}


def scores_of(folder):
    """Both scores of each ORF, by id, in the order of the table."""
    rows = table(folder / PREDICTIONS)
    return {row["Sequence_ID"]: (float(row["score1"]), float(row["score2"])) for row in rows}


def is_sampled(record, chunk):
    return record not in SAMPLES or int(chunk) in SAMPLES[record]


def contents(folder):
    """Bytes of the tables and files of letters, by name."""
    skipped = {"summary.json", "esm2.h5", "dnabert_s.h5"}
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name not in skipped}


def test_sampled_chunks_have_the_rows_of_a_whole_run_and_the_others_say_so(call):
    whole, _ = call("whole")
    some, log = call("some", "--data.max_chunks", MOST, "--data.save_orfs", "true")
    assert f"5 records, 54 chunks, {5 + 3 + 5 + 5 + 1} of them sampled, " in log

    expected = {
        name: scores
        for name, scores in scores_of(whole).items()
        if is_sampled(*ORF.fullmatch(name).groups())
    }
    found = scores_of(some)
    assert list(found) == list(expected)
    assert len(found) > 15
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=0, atol=1e-5)
    chunks = {row["Modified_ID"] for row in table(some / HIGHEST)}
    assert chunks == {name[:-2] for name in found}
    for kind in ("nucleotide.fa", "protein.faa"):
        lines = (some / f"some_identified_{kind}").read_text().splitlines()
        assert [line[1:] for line in lines if line[0] == ">"] == list(found)

    rows, before = table(some / "chunks.tsv"), table(whole / "chunks.tsv")
    unknown = dict.fromkeys(("n_orfs", "best_frame", "others_score", "virus_score"), "NA")
    assert len(rows) == len(before) == 54
    for row, other in zip(rows, before, strict=True):
        if not is_sampled(row["seq_name"], row["chunk"]):
            assert row == {**other, **unknown, "prediction": "not_sampled"}
            continue
        for name in ("others_score", "virus_score"):
            assert (row[name] == "NA") == (other[name] == "NA")
        same = ("seq_name", "chunk", "start", "end", "n_orfs", "prediction")
        assert [row[name] for name in same] == [other[name] for name in same]
    bed = [line.split("\t")[3] for line in (some / "chunks.bed").read_text().splitlines()]
    viral = [r for r in rows if r["prediction"] == "virus"]
    assert bed == [f"{row['seq_name']}_chunk_{row['chunk']}" for row in viral]
    assert len([name for name in bed if name.startswith("long_")]) >= 3


def test_records_are_called_by_their_samples(call):
    whole, _ = call("whole")
    some, log = call("some", "--data.max_chunks", MOST)
    found, before = contigs_of(some), contigs_of(whole)
    assert list(found) == list(before) == list(RECORDS)
    assert [row["n_chunks"] for row in found.values()] == ["30", "3", "12", "8", "1"]
    assert [row["n_sampled"] for row in found.values()] == ["5", "3", "5", "5", "1"]
    assert all(row["n_sampled"] == row["n_chunks"] for row in before.values())
    statuses = [row["status"] for row in found.values()]
    assert statuses == ["ok", "ok", "no_orf_in_sample", "no_orf_in_sample", "too_short"]
    assert [row["status"] for row in before.values()] == ["ok", "ok", "ok", "no_orf", "too_short"]

    chunks = [row for row in table(some / "chunks.tsv") if row["seq_name"] == "long"]
    scores = [float(row["virus_score"]) for row in chunks if row["virus_score"] != "NA"]
    assert 0 < len(scores) <= MOST
    assert float(found["long"]["virus_score"]) == pytest.approx(np.mean(scores), abs=1e-6)
    viral = [row for row in chunks if row["prediction"] == "virus"]
    assert found["long"]["n_viral_chunks"] == str(len(viral))
    orfs = [name for name in scores_of(some) if name.startswith("long_")]
    assert found["long"]["n_orfs"] == str(len(orfs))

    regions = [{row["seq_name"] for row in table(f / "regions.tsv")} for f in (whole, some)]
    assert regions == [{"long", "short", "hidden"}, {"short"}]
    assert (some / "regions.fasta").read_text().startswith(">short|region_1 ")
    assert ">long\n" in (some / "virus.fasta").read_text()

    content = json.loads((some / "summary.json").read_text())
    by_status = content["chunks_by_status"]
    assert by_status["not_sampled"] == 54 - 19
    assert content["chunks"] == sum(by_status.values()) == 54
    assert content["share_of_chunks_computed"] == pytest.approx(19 / 54)
    assert content["records_sampled"] == 3
    assert content["records_by_status"]["no_orf_in_sample"] == 2
    assert sum(content["records_by_status"].values()) == 5
    assert content["max_chunks"] == json.loads((some.parent / "some.run.json").read_text())[
        "max_chunks"
    ] == MOST  # fmt: skip
    [warning] = content["warnings"]
    assert warning in log
    assert warning.startswith("3 records are called by a sample of their chunks (--data.max_")
    assert "one could hide between the chunks of a sample; 35.2 % of all chunks" in warning
    assert json.loads((whole / "summary.json").read_text())["warnings"] == []


def test_records_of_no_more_chunks_are_called_as_ever_bit_for_bit(call):
    whole, _ = call("whole")
    same, log = call("same", "--data.max_chunks", 30)
    assert contents(whole) == contents(same)
    content = json.loads((same / "summary.json").read_text())
    assert (content["records_sampled"], content["share_of_chunks_computed"]) == (0, 1)
    assert content["chunks_by_status"]["not_sampled"] == 0
    assert content["warnings"] == []
    assert "sampled" not in log


@pytest.mark.parametrize("most", [0, -3])
def test_samples_of_nothing_exit_2_and_write_nothing(run_main, words, tmp_path, most):
    before = {*tmp_path.iterdir()}
    ended = run_main(*words, "--writer.path", "calls", "--data.max_chunks", most)
    assert ended.code == 2
    assert f"--data.max_chunks must be at least 1, not {most}" in ended.log
    assert {*tmp_path.iterdir()} == before


@pytest.mark.slow
def test_two_ranks_sample_as_one_does(call, start, words, tmp_path):
    more = ("--data.max_chunks", MOST, "--data.save_orfs", "true")
    one, _ = call("one", *more)
    command = start(
        *("predict", *words, *more, "--writer.path", "two", "--trainer.accelerator", "cpu"),
        *("--trainer.devices", 2, "--trainer.strategy", "ddp"),
    )
    ended = command.wait(90)
    assert ended.code == 0, ended.log
    command.assert_nothing_left()
    assert contents(one) == contents(tmp_path / "two")
    report = json.loads((tmp_path / "two.run.json").read_text())
    assert min(rank["packs"] for rank in report["per_rank"]) > 0


@pytest.mark.parametrize("other", [(), ("--data.max_chunks", MOST + 1)], ids=["none", "more"])
def test_interrupted_run_goes_on_with_the_same_sample_alone(
    call, run_main, words, monkeypatch, tmp_path, other
):
    forward, calls = DNABERTSEmbedder.forward, []

    def fail_at_third(self, batch):
        calls.append(batch)
        if len(calls) == 3:
            raise RuntimeError("power cut")
        return forward(self, batch)

    same = ("--data.max_chunks", MOST)
    with monkeypatch.context() as patch:
        patch.setattr(DNABERTSEmbedder, "forward", fail_at_third)
        assert run_main(*words, "--writer.path", "calls", *same).code == 1
    ended = run_main(*words, "--writer.path", "calls", *other)
    assert ended.code == 2
    is_now = MOST + 1 if other else None
    assert f"max_chunks was {MOST} and is {is_now}" in ended.log
    assert list((tmp_path / "calls.parts").glob("part-*.h5"))
    calls, _ = call("calls", *same)
    report = json.loads((tmp_path / "calls.run.json").read_text())
    assert report["resumed_records"] > 0
    whole, _ = call("whole", *same)
    assert contents(calls) == contents(whole)


def test_sampled_results_are_drawn_evaluated_and_exported(call, tmp_path, capfd):
    some, _ = call(
        *("some", "--data.max_chunks", MOST, "--data.save_orfs", "true"),
        *("--writer.save_embeddings", "true"),
    )
    main(["plot", "some"])
    page = (tmp_path / "some.pictures" / "index.html").read_text()
    assert "They are a sample of 5 of 30 chunks; the others are gaps." in page
    assert "3 records are called by a sample of their chunks" in page
    assert ">Sampled</th>" in page

    labels = "".join(f"{name}\tvirus\n" for name in RECORDS)
    (tmp_path / "labels.tsv").write_text(f"seq_name\tlabel\n{labels}")
    main(["evaluate", "some", "--truth", "labels.tsv"])
    assert "some/contigs.tsv (5 records)" in capfd.readouterr().out

    main(["export", "some", "--to", "viral-pipelines", "--output", "sample"])
    assert "3 records were called by a sample of their chunks" in capfd.readouterr().err
    orfs = (tmp_path / "sample.virnucpro.tsv").read_bytes()
    assert orfs == (some / PREDICTIONS).read_bytes()
    [long] = [r for r in table(tmp_path / "sample.contigs_classified.tsv") if r["ID"] == "long"]
    contig = contigs_of(some)["long"]
    assert int(long["n_chunks"]) <= MOST
    assert float(long["weighted_delta"]) == pytest.approx(float(contig["weighted_delta"]))

    proteins = some / "some_identified_protein.faa"
    main(["export", "some/esm2.h5", "--to", "biotrainer", "--sequences", str(proteins)])
    with h5py.File(some / "esm2.biotrainer.h5") as file:
        names = {dataset.attrs["original_id"] for dataset in file.values()}
    assert names <= scores_of(some).keys()
    distinct = {line for line in proteins.read_text().splitlines() if line[0] != ">"}
    assert len(names) == len(distinct)
