"""The folder of calls: every record accounted for, and nothing of anybody else's deleted."""

import gzip
import json
import logging
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
from lightning.pytorch import Trainer

from virnucpro_pl import (
    ContigDataModule,
    DNABERTSEmbedder,
    EmbeddingPairDataModule,
    ESM2Embedder,
    SequenceDataModule,
    TableWriter,
    VirNucPro,
    VirusClassifier,
)
from virnucpro_pl.contracts import Inputs
from virnucpro_pl.errors import UsageError
from virnucpro_pl.input.orfs import plan_chunks
from virnucpro_pl.output.part_file import IncompleteError

LONG = "GCCAACGGCTGG" * 120
RECORDS = {
    "long": LONG,
    "short": "AC",
    "closed": "TAATTAATTAA" * 3,
    "b.1|x": "GGCTGGCGGCTGG",
    "tiny": "ATG",
}
PREDICTIONS, HIGHEST = "prediction_results.txt", "prediction_results_highestscore.csv"
CALLS = [
    *("chunks.tsv", "contigs.tsv", PREDICTIONS, HIGHEST),
    *("regions.fasta", "regions.tsv", "summary.json", "virus.fasta"),
]
"""What a folder holds, in order."""


@pytest.fixture
def call(weights_file, save_classifier, tmp_path):
    """Call the records with small networks; the folder of calls."""
    (tmp_path / "in").mkdir()
    classifier = save_classifier(tmp_path / "in" / "c.pth", 192 + 32, 16)

    def run(
        name="calls",
        records=RECORDS,
        save_orfs=False,
        classifier=classifier,
        limit_predict_batches=None,
        data_module=ContigDataModule,
        **options,
    ):
        path = tmp_path / "in" / "in.fna"
        path.write_text("".join(f">{n} text\n{s}\n" for n, s in records.items()))
        model = VirNucPro(
            ESM2Embedder(weights=str(weights_file)),
            DNABERTSEmbedder(weights="random", size="tiny"),
            str(classifier),
            enable_fp16=False,
        )
        predict(
            model,
            data_module(path, save_orfs=save_orfs, num_workers=0, tokens_per_batch=512),
            TableWriter(tmp_path / name, **options),
            limit_predict_batches=limit_predict_batches,
        )
        return tmp_path / name

    return run


def predict(model, data, *callbacks, limit_predict_batches=None):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        enable_checkpointing=False,
        limit_predict_batches=limit_predict_batches,
        **quiet,
    )
    return trainer.predict(model, data)


def table(path):
    """Rows of a table, without its header."""
    return [line.split("\t") for line in path.read_text().splitlines()[1:]]


def by_column(path):
    """Rows of a table, each by the names of its header."""
    header, *rows = [line.split("\t") for line in path.read_text().splitlines()]
    return [dict(zip(header, row, strict=True)) for row in rows]


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def test_table_writer_folder_holds_the_calls_only(call, tmp_path):
    folder = call()
    assert sorted(p.name for p in folder.iterdir()) == CALLS
    assert sorted(p.name for p in tmp_path.iterdir()) == ["calls", "calls.run.json", "in"]


def test_contigs_follow_from_the_scores_of_the_orfs(call):
    folder = call()
    rows = {row[0]: row[1:8] for row in table(folder / "contigs.tsv")}
    assert list(rows) == list(RECORDS)
    best = {}
    for orf, _, _, score in table(folder / PREDICTIONS):
        chunk = orf[:-2]
        best[chunk] = max(best.get(chunk, 0.0), float(score))
    viral = {chunk for chunk, call in table(folder / HIGHEST)
             if call == "True"}  # fmt: skip
    assert len(best) == 3 + 2
    for name, letters in RECORDS.items():
        length, n_chunks, n_orfs, n_viral, prediction, score, status = rows[name]
        mine = {chunk: s for chunk, s in best.items() if chunk.rpartition("_chunk_")[0] == name}
        assert (int(length), int(n_chunks)) == (len(letters), -(-len(letters) // 500))
        assert int(n_viral) == len(viral & mine.keys())
        if mine:
            assert status == "ok"
            assert float(score) == pytest.approx(np.mean(list(mine.values())), abs=1e-6)
            assert prediction == ("virus" if float(score) >= 0.5 else "others")
        else:
            assert (n_orfs, prediction, score) == ("0", "NA", "NA")
            assert status == ("too_short" if len(letters) < 3 else "no_orf")


def test_chunks_follow_from_the_scores_of_the_orfs(call):
    folder = call(bed=True)
    orfs = {}
    for name, _, others, virus in table(folder / PREDICTIONS):
        orfs.setdefault(name[:-2], []).append((name[-2:], others, virus))
    calls = dict(table(folder / HIGHEST))
    chunks = by_column(folder / "chunks.tsv")
    places = [
        (name, n, start + 1, start + length)
        for name, letters in RECORDS.items()
        for n, (start, length) in enumerate(plan_chunks(len(letters), 500).tolist(), 1)
    ]
    assert [(c["seq_name"], *(int(c[k]) for k in ("chunk", "start", "end"))) for c in chunks] == (
        places
    )
    for chunk in chunks:
        name = f"{chunk['seq_name']}_chunk_{chunk['chunk']}"
        mine = orfs.get(name, [])
        scores = [max((row[k] for row in mine), key=float, default="NA") for k in (1, 2)]
        assert [chunk["others_score"], chunk["virus_score"]] == scores
        assert int(chunk["n_orfs"]) == len(mine)
        frames = [frame for frame, _, virus in mine if virus == scores[1]]
        assert chunk["best_frame"] == (frames[0] if frames else "NA")
        words = {"True": "virus", "False": "others"}
        assert chunk["prediction"] == words.get(calls.get(name), "NA")
    viral = [f"{c['seq_name']}_chunk_{c['chunk']}" for c in chunks if c["prediction"] == "virus"]
    bed = [line.split("\t") for line in (folder / "chunks.bed").read_text().splitlines()]
    assert [row[3] for row in bed] == viral
    call(bed=True, overwrite=True)
    assert "chunks.bed" not in [path.name for path in call(overwrite=True).iterdir()]


class OfTwoFiles(ContigDataModule):
    """The first two records are of one file, the others of another."""

    @property
    def inputs(self):
        return Inputs(["a.fa", "b/c.fq.gz"], np.array([0, 0, 1, 1, 1], np.int32))


def test_records_of_several_files_name_theirs(call):
    folder = call(data_module=OfTwoFiles)
    files = dict(zip(RECORDS, ["a.fa"] * 2 + ["b/c.fq.gz"] * 3, strict=True))
    for name in ("contigs.tsv", "chunks.tsv"):
        rows = by_column(folder / name)
        assert list(rows[0])[-1] == "input"
        assert {row["seq_name"]: row["input"] for row in rows} == files


def test_regions_are_the_viral_chunks_in_a_row(call, read_fasta):
    folder = call(region_chunks=1)
    viral = [
        (chunk["seq_name"], int(chunk["chunk"]))
        for chunk in by_column(folder / "chunks.tsv")
        if chunk["prediction"] == "virus"
    ]
    assert viral
    regions = by_column(folder / "regions.tsv")
    assert summary(folder)["regions"] == len(regions)
    assert sum(int(region["n_viral"]) for region in regions) == len(viral)
    names, letters = read_fasta(folder / "regions.fasta")
    assert names == [region["region"] for region in regions]
    for region, bases in zip(regions, letters, strict=True):
        start, end = int(region["start"]), int(region["end"])
        assert RECORDS[region["seq_name"]][start - 1 : end] == bases
    many = call(region_chunks=4, overwrite=True, compress=True)
    assert table(many / "regions.tsv") == []
    assert gzip.decompress((many / "regions.fasta.gz").read_bytes()) == b""
    assert summary(many)["regions"] == 0


def test_other_regions_are_no_other_run(call, monkeypatch):
    with pytest.raises(IncompleteError):
        call(limit_predict_batches=1)
    folder = call(region_gap=0, region_chunks=1, bed=True)
    report = json.loads(folder.with_name("calls.run.json").read_text())
    assert report["resumed_records"] > 0
    assert (folder / "chunks.bed").is_file()


def test_summary_accounts_for_records_chunks_and_orfs(call):
    content = summary(call())
    assert content["records"] == sum(content["records_by_status"].values()) == 5
    assert content["records_by_status"] == {
        "ok": 3, "no_orf": 1, "too_short": 1, "failed": 0, "skipped": 0, "no_orf_in_sample": 0,
    }  # fmt: skip
    assert sum(content["records_by_prediction"].values()) == 5
    assert sum(content["records_by_call"].values()) == 5
    assert sum(content["records_by_tier"].values()) == 5
    assert content["records_by_call"]["NA"] == content["records_by_tier"]["NA"] == 2
    assert content["chunks"] == sum(content["chunks_by_status"].values()) == 7
    assert content["chunks_by_status"] == {"ok": 5, "no_orf": 2, "failed": 0, "not_sampled": 0}
    assert (content["share_of_chunks_computed"], content["records_sampled"]) == (1, 0)
    assert content["orfs"] == content["orfs_scored"] + sum(content["orfs_skipped"].values()) > 5
    assert content["warnings"] == ["These calls mean nothing: RANDOM weights of DNABERT-S-tiny"]


def test_last_lines_count_calls_and_say_where_they_are(call, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    folder = call(threshold=0.0, save_embeddings=True)
    assert caplog.messages[-2] == "5 records: 3 virus, 0 others, 2 without a score"
    assert caplog.messages[-1].startswith(f"Wrote {folder}. Look at it with: ")
    call(threshold=1.0, overwrite=True)
    assert caplog.messages[-2] == "5 records: 0 virus, 3 others, 2 without a score"
    folder = call(overwrite=True, save_embeddings=True)
    paths = [folder / "dnabert_s.h5", folder / "esm2.h5"]
    model = VirusClassifier(str(tmp_path / "in" / "c.pth"))
    predict(model, EmbeddingPairDataModule(*paths, 0), TableWriter(tmp_path / "again"))
    labels = [row[1] for row in table(tmp_path / "again" / PREDICTIONS)]
    viruses, others = labels.count("virus"), labels.count("others")
    counts = f"{viruses} virus, {others} others, 0 without a score"
    assert caplog.messages[-2] == f"{len(labels)} open reading frames: {counts}"


def test_random_classifier_is_told_once_in_log_and_in_summary(call, caplog):
    content = summary(call(classifier="random"))
    assert caplog.text.count("The classifier has RANDOM weights: its calls mean nothing") == 1
    assert caplog.text.count("RANDOM") == 2  # DNABERT-S's as well
    expected = "These calls mean nothing: RANDOM weights of classifier, DNABERT-S-tiny"
    assert content["warnings"] == [expected]
    assert content["classifier"] == "random"


@pytest.mark.parametrize(("threshold", "bases"), [(0.0, 1), (0.0, 600), (0.0, 1 << 20), (1.0, 1)])
def test_virus_fasta_holds_exactly_the_records_called_virus(
    call, read_fasta, threshold, bases, monkeypatch
):
    monkeypatch.setattr("virnucpro_pl.output.table_writer._BASES", bases)
    folder = call(threshold=threshold)
    names, letters = read_fasta(folder / "virus.fasta")
    called = [row[0] for row in table(folder / "contigs.tsv") if row[5] == "virus"]
    assert names == called == (["long", "b.1|x", "tiny"] if threshold == 0 else [])
    assert letters == [RECORDS[name] for name in called]
    assert max(map(len, (folder / "virus.fasta").read_text().splitlines()), default=0) <= 60


def test_virus_fasta_compressed_is_the_same_every_time(call):
    plain = (call("plain", threshold=0.0) / "virus.fasta").read_bytes()
    first, second = (call(n, threshold=0.0, compress=True) / "virus.fasta.gz" for n in "ab")
    assert gzip.decompress(first.read_bytes()) == plain
    assert first.read_bytes() == second.read_bytes()


def test_saved_embeddings_give_the_same_calls_again(call, tmp_path):
    folder = call(save_embeddings=True, save_orfs=True)
    paths = [folder / "dnabert_s.h5", folder / "esm2.h5"]
    with h5py.File(paths[0]) as dna, h5py.File(paths[1]) as esm:
        assert (dna.attrs["model"], esm.attrs["model"]) == (
            "DNABERT-S-tiny",
            "ESM-2, 3 layers of 32",
        )
        assert dna.attrs["model_name"] == dna.attrs["model"]
        assert "input" not in dna
        assert (dna.attrs["weights"], esm.attrs["weights"]) == ("random", "tiny.pt")
        assert (dna["embeddings"].shape[1], esm["embeddings"].shape[1]) == (192, 32)
        proteins = (folder / "in_identified_protein.faa").read_text().splitlines()[1::2]
        assert esm["lengths"][()].tolist() == [len(s) for s in proteins]
    predict(
        VirusClassifier(str(tmp_path / "in" / "c.pth")),
        EmbeddingPairDataModule(*paths, num_workers=0),
        TableWriter(tmp_path / "again"),
    )
    again = tmp_path / "again"
    assert sorted(p.name for p in again.iterdir()) == [PREDICTIONS, HIGHEST, "summary.json"]
    for old, new in zip(*(table(f / PREDICTIONS) for f in (folder, again)), strict=True):
        assert old[:2] == new[:2]
        assert float(old[3]) == pytest.approx(float(new[3]), abs=1e-6)
    assert (again / HIGHEST).read_bytes() == (folder / HIGHEST).read_bytes()
    for key in ("model_esm2", "weights_esm2", "model_dnabert_s", "weights_dnabert_s"):
        assert summary(again)[key] == summary(folder)[key]
    assert summary(folder)["weights_esm2"] == "tiny.pt"
    assert summary(again)["warnings"] == summary(folder)["warnings"]  # of the embeddings' weights


class TwoFiles(ContigDataModule):
    """Its first record is of one file, the others are of another."""

    @property
    def inputs(self):
        return Inputs(["a.fna", "b.fna"], np.array([0, 1, 1, 1, 1], np.int32))


def test_saved_embeddings_of_several_inputs_name_that_of_each_orf(call):
    folder = call(data_module=TwoFiles, save_embeddings=True)
    for name in ("dnabert_s.h5", "esm2.h5"):
        with h5py.File(folder / name) as file:
            assert file["inputs"].asstr()[:].tolist() == ["a.fna", "b.fna"]
            of_first = [str(n).startswith("long_") for n in file["sequence_ids"].asstr()[:]]
            assert file["input"][:].tolist() == [0 if first else 1 for first in of_first]
            assert {*of_first} == {True, False}


def test_input_without_orf_gives_headers_and_empty_files(call):
    records = {name: RECORDS[name] for name in ("closed", "short")}
    folder = call(records=records, save_embeddings=True, save_orfs=True)
    statuses = [row["status"] for row in by_column(folder / "contigs.tsv")]
    assert statuses == ["no_orf", "too_short"]
    assert [table(folder / name) for name in (PREDICTIONS, HIGHEST)] == [[], []]
    assert [row[4:] for row in table(folder / "chunks.tsv")] == [["0", *["NA"] * 4]] * 2
    for name in ("in_identified_nucleotide.fa", "in_identified_protein.faa", "virus.fasta"):
        assert (folder / name).read_bytes() == b""
    for name, width in (("dnabert_s.h5", 192), ("esm2.h5", 32)):
        with h5py.File(folder / name) as file:
            assert file["embeddings"].shape == (0, width)
            assert len(file["sequence_ids"]) == len(file["lengths"]) == 0
            assert file.attrs["complete"]
    assert summary(folder)["orfs"] == 0
    report = json.loads(folder.with_name("calls.run.json").read_text())
    assert report["totals"]["records"] == 0


def test_row_without_embedding_is_na_and_counted(
    write_embeddings, save_classifier, tmp_path, caplog
):
    caplog.set_level(logging.INFO)
    vectors = np.random.default_rng(0).normal(size=(4, 10)).astype(np.float32)
    vectors[1] = np.nan
    ids = ["a_chunk_1F1", "a_chunk_1R1", "b_chunk_1F1", "b_chunk_1F2"]
    dna = write_embeddings(tmp_path / "dna.h5", ids, vectors)
    vectors[2:] = np.inf
    esm = write_embeddings(tmp_path / "esm.h5", ids, vectors[:, :5])
    model = VirusClassifier(str(save_classifier(tmp_path / "c.pth", 15, 4)))
    predict(model, EmbeddingPairDataModule(dna, esm, 0), TableWriter(tmp_path / "out"))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        PREDICTIONS,
        HIGHEST,
        "summary.json",
    ]
    labels = [row[1] for row in table(tmp_path / "out" / PREDICTIONS)]
    assert labels[0] in ("virus", "others")
    assert labels[1:] == ["NA"] * 3
    assert [row[1] for row in table(tmp_path / "out" / HIGHEST)][1] == "NA"
    content = summary(tmp_path / "out")
    assert (content["orfs"], content["orfs_scored"]) == (4, 1)
    assert content["orfs_skipped"] == {"embedding_not_finite": 3}
    assert "3 of 4 ORFs have no score" in content["warnings"][0]
    assert content["warnings"][0] in caplog.text
    assert re.fullmatch(
        r"4 open reading frames: (1 virus, 0 others|0 virus, 1 others), 3 without a score",
        caplog.messages[-2],
    )


def test_existing_folder_is_refused_or_replaced_whole(call):
    before = {p.name: p.read_bytes() for p in call(save_orfs=True).iterdir()}
    with pytest.raises(UsageError, match="exists already"):
        call(threshold=1.0)
    folder = call(threshold=1.0, overwrite=True)
    assert sorted(p.name for p in folder.iterdir()) == CALLS
    assert (folder / "contigs.tsv").read_bytes() != before["contigs.tsv"]
    assert not folder.with_name("calls.parts").exists()


def test_overwrite_never_deletes_what_it_did_not_write(call, tmp_path):
    folder = call()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"not overwritten, since it holds more .*: notes\.txt"):
        call(overwrite=True)
    assert (folder / "notes.txt").read_text() == "mine"
    with pytest.raises(UsageError, match="holds an input of this run"):
        call("in", overwrite=True)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="is a file"):
        call("file", overwrite=True)
    assert not list(tmp_path.glob("*.parts"))


@pytest.mark.parametrize("linked", [False, True])
def test_empty_folder_is_filled(call, tmp_path, linked):
    (tmp_path / "empty").mkdir()
    if linked:
        (tmp_path / "calls").symlink_to(tmp_path / "empty")
    folder = call("calls" if linked else "empty")
    assert sorted(p.name for p in folder.iterdir()) == CALLS
    with pytest.raises(UsageError, match="exists already"):
        call(folder.name)


def test_overwrite_of_a_summary_that_is_no_calls_is_refused(call, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "summary.json").write_text('{"theirs": 1}')
    with pytest.raises(UsageError, match=r"its summary\.json is not of calls of this program"):
        call("theirs", overwrite=True)
    assert (tmp_path / "theirs" / "summary.json").read_text() == '{"theirs": 1}'


def test_overwrite_of_a_link_leaves_its_target(call, tmp_path):
    call("target")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    call("link", overwrite=True)
    assert not (tmp_path / "link").is_symlink()
    assert sorted(p.name for p in (tmp_path / "target").iterdir()) == CALLS


@pytest.mark.parametrize(("option", "value"), [("region_gap", -1), ("region_chunks", 0)])
def test_region_options_out_of_range_raise(option, value):
    with pytest.raises(UsageError, match=rf"--writer\.{option} must be at least \d, not {value}"):
        TableWriter("calls", **{option: value})


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_threshold_outside_probabilities_raises(threshold):
    with pytest.raises(UsageError, match="from 0 to 1"):
        TableWriter("calls", threshold=threshold)


def test_table_writer_refuses_models_without_calls_or_embeddings(
    weights_file, write_embeddings, save_classifier, tmp_path
):
    (tmp_path / "p.faa").write_text(">a\nMKV\n")
    with pytest.raises(UsageError, match="ESM2Embedder makes none"):
        predict(
            ESM2Embedder(weights=str(weights_file)),
            SequenceDataModule(tmp_path / "p.faa", num_workers=0),
            TableWriter(tmp_path / "out"),
        )
    paths = [write_embeddings(tmp_path / n, ["aF1"], np.ones((1, 3))) for n in ("d.h5", "e.h5")]
    with pytest.raises(UsageError, match="its embeddings exist already"):
        predict(
            VirusClassifier(str(save_classifier(tmp_path / "c.pth", 6, 4))),
            EmbeddingPairDataModule(*paths, num_workers=0),
            TableWriter(tmp_path / "out", save_embeddings=True),
        )
    with pytest.raises(UsageError, match="bed is not for VirusClassifier"):
        predict(
            VirusClassifier(str(tmp_path / "c.pth")),
            EmbeddingPairDataModule(*paths, num_workers=0),
            TableWriter(tmp_path / "out", bed=True),
        )
    assert [p for p in tmp_path.iterdir() if Path(p).name.startswith("out")] == []
