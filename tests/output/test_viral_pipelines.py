"""Calls as Broad's pipelines write them, read again by a reader made after their description."""

import io
import json
import math
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from virnucpro_pl.cli.main import main
from virnucpro_pl.errors import OutputError
from virnucpro_pl.output import sorted_lines
from virnucpro_pl.output import viral_pipelines as module
from virnucpro_pl.output.viral_pipelines import export_results, natural_key

SUFFIXES = (
    *(".virnucpro.tsv", ".virnucpro_highestscore.csv"),
    *(".virnucpro.tgz", ".contigs_classified.tsv"),
)
PREDICTIONS = (
    "Sequence_ID\tPrediction\tscore1\tscore2\n"
    "NODE_10_chunk_1F1\tvirus\t0.125\t0.875\n"
    "NODE_10_chunk_2R1\tNA\tnan\tnan\n"
    "NODE_9_chunk_1F2\tothers\t0.9\t0.1\n"
)
CHUNKS = (
    "seq_name\tchunk\tstart\tend\tn_orfs\tbest_frame\tothers_score\tvirus_score\tprediction\n"
    "NODE_10\t1\t1\t500\t1\tF1\t0.125\t0.875\tvirus\n"
    "NODE_10\t2\t401\t900\t1\tNA\tNA\tNA\tNA\n"
    "NODE_10\t10\t801\t900\t1\tF1\t0.75\t0.875\tvirus\n"
    "NODE_8\t1\t1\t90\t0\tNA\tNA\tNA\tNA\n"
    "NODE_9\t1\t1\t500\t1\tF2\t0.9\t0.1\tothers\n"
)
HIGHEST = (
    "Modified_ID\tIs_Virus\tmax_score_0\tmax_score_1\n"
    "NODE_10_chunk_1\tTrue\t0.125\t0.875\n"
    "NODE_10_chunk_10\tTrue\t0.75\t0.875\n"
    "NODE_9_chunk_1\tFalse\t0.9\t0.1\n"
)
CLASSIFIED = (
    "ID\tcall\ttier\tweighted_delta\tn_chunks\tn_confident_viral\tn_confident_nonviral"
    "\tn_ambiguous\tviral_proportion\tnonviral_proportion\n"
    "NODE_9\tNon-viral\tlow_confidence\t-0.8\t1\t0\t1\t0\t0.0\t1.0\n"
    # (0.75 * 0.8660 + 0.125 * 0.3536) / (0.8660 + 0.3536)
    "NODE_10\tViral\tlow_confidence\t0.569\t2\t1\t0\t1\t1.0\t0.0\n"
)


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "prediction_results.txt").write_text(PREDICTIONS)
    (folder / "chunks.tsv").write_text(CHUNKS)
    (folder / "summary.json").write_text(json.dumps({"orfs": 3, "package_version": "x"}))
    return folder


def export(*words):
    main(["export", "results", "--to", "viral-pipelines", *words])


def refused(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        export(*words)
    assert ended.value.code == 2
    return capsys.readouterr().err


def unpack(path: Path) -> dict[str, str]:
    with tarfile.open(path) as tar:
        return {entry.name: tar.extractfile(entry).read().decode() for entry in tar}


def test_files_by_hand_leave_out_what_has_no_score(results, tmp_path):
    export("--output", "a")
    texts = [(tmp_path / f"a{suffix}").read_text() for suffix in (SUFFIXES[0], SUFFIXES[1])]
    lines = PREDICTIONS.splitlines(keepends=True)
    assert texts == ["".join([*lines[:2], lines[3]]), HIGHEST]
    assert (tmp_path / "a.contigs_classified.tsv").read_text() == CLASSIFIED
    packed = {"a.virnucpro.tsv": texts[0], "a.virnucpro_highestscore.csv": texts[1]}
    assert unpack(tmp_path / "a.virnucpro.tgz") == packed
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ["results", *(f"a{suffix}" for suffix in SUFFIXES)]
    )


def test_chunks_that_were_not_sampled_are_left_out_and_told(results, tmp_path, capsys):
    export("--output", "plain")
    assert "sample" not in capsys.readouterr().err
    lines = CHUNKS.splitlines(keepends=True)
    left_out = [f"NODE_{n}\t{k}\t1\t9\tNA\tNA\tNA\tNA\tnot_sampled\n" for n in "89" for k in "79"]
    (results / "chunks.tsv").write_text(
        "".join([*lines[:5], *left_out[:2], *lines[5:], *left_out[2:]])
    )
    export("--output", "a")
    for suffix in (".virnucpro.tsv", ".virnucpro_highestscore.csv", ".contigs_classified.tsv"):
        texts = [(tmp_path / f"{name}{suffix}").read_text() for name in ("plain", "a")]
        assert texts[0] == texts[1]
    assert "2 records were called by a sample of their chunks" in capsys.readouterr().err


def test_names_begin_as_the_folder_by_default_and_bytes_are_the_same(results, tmp_path, caplog):
    export()
    first = {suffix: (tmp_path / f"results{suffix}").read_bytes() for suffix in SUFFIXES}
    export("--overwrite", "true")
    assert first == {suffix: (tmp_path / f"results{suffix}").read_bytes() for suffix in SUFFIXES}


@pytest.mark.parametrize("size", [1, 2])
def test_small_blocks_give_the_same_files(results, tmp_path, monkeypatch, size):
    monkeypatch.setattr(module, "_CHUNKS_AT_ONCE", size)
    monkeypatch.setattr(sorted_lines, "_LINES", size)
    export()
    assert (tmp_path / "results.virnucpro_highestscore.csv").read_text() == HIGHEST
    assert (tmp_path / "results.contigs_classified.tsv").read_text() == CLASSIFIED


def test_results_without_a_score_leave_headers(results, tmp_path):
    (results / "chunks.tsv").write_text(CHUNKS.splitlines(keepends=True)[0])
    export()
    assert (tmp_path / "results.virnucpro_highestscore.csv").read_text().count("\n") == 1
    assert (tmp_path / "results.contigs_classified.tsv").read_text().count("\n") == 1


def test_ids_are_in_natural_order():
    ids = ["b", "NODE_2", "NODE_10", "node_3", "a1b10", "a1b9", "A01b9", "a1", "", "7", "10"]
    expected = ["", "7", "10", "a1", "a1b9", "A01b9", "a1b10", "b", "NODE_2", "node_3", "NODE_10"]
    assert sorted(ids, key=natural_key) == expected
    assert natural_key("9" * 5000 + "\tx") > natural_key("9" * 4999 + "\ty")


def test_files_that_exist_are_replaced_only_if_asked_and_own(results, tmp_path, capsys):
    export()
    assert "results.virnucpro.tsv exists already" in refused(capsys)
    export("--overwrite", "true")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("content", [b"mine\n", b"\x1f\x8b\x08", "tar"])
def test_other_files_are_never_overwritten(results, tmp_path, capsys, suffix, content):
    victim = tmp_path / f"results{suffix}"
    if content == "tar":
        with tarfile.open(victim, "w:gz") as tar:
            tar.addfile(tarfile.TarInfo("photo.jpg"), io.BytesIO())
    else:
        victim.write_bytes(content)
    before = victim.read_bytes()
    line = refused(capsys, "--overwrite", "true")
    assert f"{victim} is not overwritten, since it is nothing that export --to viral-" in line
    assert victim.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["results", victim.name])


def test_link_to_an_input_is_refused(results, tmp_path, capsys):
    (tmp_path / "results.virnucpro.tsv").symlink_to(results / "prediction_results.txt")
    assert "is an input of this run" in refused(capsys, "--overwrite", "true")
    assert (results / "prediction_results.txt").read_text() == PREDICTIONS


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("prediction_results.txt", "results is no folder of results"),
        ("summary.json", "results is no folder of results"),
        ("chunks.tsv", "results has no chunks.tsv: classify.yaml writes none"),
    ],
)
def test_other_folders_are_refused(results, tmp_path, capsys, missing, message):
    (results / missing).unlink()
    assert message in refused(capsys)
    assert [p.name for p in tmp_path.iterdir()] == ["results"]


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("chunks.tsv", "0.1\tothers\n", "0.1\toth", "chunks.tsv, line 6 is cut off or damaged"),
        ("chunks.tsv", "\t0.1\tothers\n", "\t0.", "chunks.tsv, line 6 is cut off or damaged"),
        ("chunks.tsv", "0.875", "viel", "a score of chunk 1 of NODE_10: could not convert"),
        ("chunks.tsv", "virus_score", "score", "has no column virus_score"),
        ("prediction_results.txt", "\tvirus\t", "\t", "line 2 is cut off or damaged"),
    ],
)
def test_damaged_tables_are_refused_and_nothing_is_left(
    results, tmp_path, capsys, name, old, new, message
):
    text = (results / name).read_text()
    (results / name).write_text(text.replace(old, new, 1))
    assert message in refused(capsys)
    assert [p.name for p in tmp_path.iterdir()] == ["results"]


def test_full_disk_leaves_nothing(results, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(module, "_pack", full)
    with pytest.raises(OutputError, match=r"out\.\* cannot be written: No space left"):
        export_results(results, tmp_path / "out", overwrite=False)
    assert [p.name for p in tmp_path.iterdir()] == ["results"]


# A whole run --------------------------------------------------------------------------------------


def classify(chunks: pd.DataFrame) -> dict[str, object]:
    """Call a contig as the task does, by its description, in plain numbers."""
    delta = [virus - others for others, virus in zip(*scores_of(chunks), strict=True)]
    weights = [math.sqrt(abs(d)) for d in delta]
    if sum(weights):
        mean = sum(d * w for d, w in zip(delta, weights, strict=True)) / sum(weights)
    else:
        mean = sum(delta) / len(delta)
    pairs = list(zip(*scores_of(chunks), strict=True))
    viral = sum(virus > 0.8 and others < 0.3 for others, virus in pairs)
    nonviral = sum(others > 0.8 and virus < 0.3 for others, virus in pairs)
    ambiguous = sum(others > 0.7 and virus > 0.7 for others, virus in pairs)
    left = len(pairs) - ambiguous
    shares = [count / left if left else 0.0 for count in (viral, nonviral)]
    call, tier = "Ambiguous", "review"
    for name, size, count, share in (
        ("Viral", mean, viral, shares[0]), ("Non-viral", -mean, nonviral, shares[1]),
    ):  # fmt: skip
        if size > 0.3:
            call, tier = name, "low"
            if count and share >= 0.1:
                tier = "high" if size > 0.6 else "moderate"
    if len(pairs) < 5:
        tier = {"high": "low", "moderate": "low", "low": "review"}.get(tier, tier)
    return {
        "call": call,
        "tier": tier if tier == "review" else f"{tier}_confidence",
        "weighted_delta": round(mean, 3),
        "n_chunks": len(pairs),
        "n_confident_viral": viral,
        "n_confident_nonviral": nonviral,
        "n_ambiguous": ambiguous,
        "viral_proportion": round(shares[0], 3),
        "nonviral_proportion": round(shares[1], 3),
    }


def scores_of(chunks: pd.DataFrame) -> tuple[list[float], list[float]]:
    return chunks["max_score_0"].tolist(), chunks["max_score_1"].tolist()


def spread(results: Path):
    """Make a change of the classifier after which its scores of a run spread over all the range."""
    scores = pd.read_csv(results / "prediction_results.txt", sep="\t")[["score1", "score2"]]
    margins = np.log(scores["score2"]) - np.log(scores["score1"])
    factor = 2.5 / margins.std()

    def edit(classifier):
        classifier.output_layer.weight.data *= factor
        classifier.output_layer.bias.data *= factor
        classifier.output_layer.bias.data[1] -= factor * margins.median()

    return edit


def write_contigs(path: Path) -> None:
    """Write contigs of many lengths, some without an ORF."""
    draw = np.random.default_rng(0)
    with path.open("w") as file:
        for number, length in enumerate([300, 2600, 900, 2, 2501, 1200, 500, 2400, 90, 40, 3100]):
            # Without T no strand has a stop; with CTA in each phase the other strand has.
            letters = "".join(draw.choice(list("ACG"), length, p=draw.dirichlet([1, 1, 1])))
            if number % 2:
                letters = letters.replace("GGG", "CTACCTACCTAC")
            file.write(f">NODE_{number}_x\n{letters}\n>NODE_{number}_y\nTAATTAATTAATTA\n")


def test_export_of_a_run_is_what_the_task_makes_of_its_packed_tables(
    run_main, save_classifier, weights_file, tmp_path
):
    write_contigs(tmp_path / "in.fa")
    small = (
        *("in.fa", "--trainer.precision", 32, "--data.num_workers", 0),
        *("--model.esm2.weights", weights_file, "--model.dnabert_s.weights", "random"),
        *("--model.dnabert_s.size", "tiny"),
    )
    classifier = save_classifier(tmp_path / "first.pth", 192 + 32, 16)
    assert run_main(*small, "-o", "first", "--classifier", classifier).code == 0
    change = spread(tmp_path / "first")
    classifier = save_classifier(tmp_path / "c.pth", 192 + 32, 16, edit=change)
    assert run_main(*small, "-o", "results", "--classifier", classifier).code == 0
    export("--output", "sample")
    with tarfile.open(tmp_path / "sample.virnucpro.tgz") as tar:
        names = [name for name in tar.getnames() if name.endswith("_highestscore.csv")]
        assert names == ["sample.virnucpro_highestscore.csv"]
        highest = pd.read_csv(tar.extractfile(names[0]), sep="\t")
    highest["ID"] = highest["Modified_ID"].str.replace(r"_chunk_\d+$", "", regex=True)
    expected = {name: classify(chunks) for name, chunks in highest.groupby("ID")}
    table = pd.read_csv(tmp_path / "sample.contigs_classified.tsv", sep="\t")
    rows = {row.pop("ID"): row for row in table.to_dict("records")}
    assert rows.keys() == expected.keys()
    assert len({row["call"] for row in rows.values()}) > 1
    for name, row in rows.items():
        assert row == pytest.approx(expected[name], abs=1.001e-3)
        assert (row["call"], row["tier"]) == (expected[name]["call"], expected[name]["tier"])
    order = [int(name.split("_")[1]) for name in table["ID"]]
    assert order == sorted(order)
    check_against_results(tmp_path / "results", tmp_path, rows)


def check_against_results(results: Path, folder: Path, rows: dict[str, dict]) -> None:
    """What is exported is what the tables of the results say."""
    orfs = (results / "prediction_results.txt").read_bytes()
    assert (folder / "sample.virnucpro.tsv").read_bytes() == orfs
    highest = (folder / "sample.virnucpro_highestscore.csv").read_text().splitlines()
    calls = (results / "prediction_results_highestscore.csv").read_text().splitlines()
    assert ["\t".join(line.split("\t")[:2]) for line in highest] == calls
    words = {"viral": "Viral", "others": "Non-viral", "ambiguous": "Ambiguous"}
    contigs = pd.read_csv(results / "contigs.tsv", sep="\t", keep_default_na=False)
    for contig in contigs.itertuples():
        if contig.call == "NA":
            assert contig.seq_name not in rows
            continue
        row = rows[contig.seq_name]
        assert (row["call"], row["tier"].split("_")[0]) == (words[contig.call], contig.tier)
        assert row["weighted_delta"] == pytest.approx(float(contig.weighted_delta))
