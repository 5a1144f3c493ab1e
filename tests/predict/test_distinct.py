"""Rows with equal sequences: computed once, with the same numbers bit for bit, and none lost."""

import json
import signal
from pathlib import Path

import h5py
import numpy as np
import pytest
from lightning.pytorch import Trainer

from virnucpro_pl import ESM2Embedder, SequenceDataModule
from virnucpro_pl.contracts import Embeddings
from virnucpro_pl.input import groups
from virnucpro_pl.input.alphabets import DNA
from virnucpro_pl.input.dna_tokens import DNATokenizer
from virnucpro_pl.input.orf_store import OrfStore, write_orfs
from virnucpro_pl.input.reader import read_records
from virnucpro_pl.models.esm2 import ESM2

LENGTHS = [30, 80, 5, 61, 120, 44, 17, 33]
CODONS = ["GCC", "AAC", "GGC", "CTG", "ACC", "GCA", "CAG"]  # few stops in any frame


def repeated(sequences, count, seed=0):
    """So many of these, in any order; each of them at least once."""
    chosen = np.random.default_rng(seed).integers(0, len(sequences), count)
    chosen[: len(sequences)] = np.random.default_rng(seed).permutation(len(sequences))
    return [sequences[number] for number in chosen]


@pytest.fixture(params=["looking ahead", "one by one"])
def order(request):
    """As on a GPU, and as on a CPU."""
    if request.param == "looking ahead":
        request.getfixturevalue("look_ahead")


@pytest.fixture
def proteins(random_proteins):
    return repeated(random_proteins(LENGTHS), 60)


@pytest.fixture
def words(predict_words, weights_file, write_fasta, tmp_path):
    """Words of a run of some proteins, its packs small."""

    def make(proteins, *more, weights=weights_file, output="out.h5", ranks=1):
        fasta = write_fasta(tmp_path / "in.faa", proteins)
        fixed = ("--data.tokens_per_batch", 150, *more)
        return predict_words(weights, fasta, tmp_path / output, *fixed, ranks=ranks)[1:]

    return make


def report(output):
    return json.loads(Path(f"{output}.run.json").read_text())


def rows_of(path):
    with h5py.File(path) as file:
        assert file["sequence_ids"].asstr()[:].tolist() == [
            f"p{row}" for row in range(len(file["sequence_ids"]))
        ]
        return file["embeddings"][:]


def assert_equal_by(keys, numbers):
    """Rows of one key have the same numbers, bit for bit; rows of others have others."""
    assert len(keys) == len(numbers)
    found = {}
    for key, row in zip(keys, numbers, strict=True):
        found.setdefault(key, set()).add(row.tobytes())
    assert {len(kinds) for kinds in found.values()} == {1}
    assert len({kind for kinds in found.values() for kind in kinds}) == len(found)


@pytest.fixture
def counted(monkeypatch):
    """Count the tokens that ESM-2 computes."""
    forward, seen = ESM2.forward, []

    def count(self, tokens, *arguments, **options):
        seen.append(len(tokens))
        return forward(self, tokens, *arguments, **options)

    monkeypatch.setattr(ESM2, "forward", count)
    return seen


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("collide", [False, True])
def test_equal_proteins_have_equal_vectors_computed_once(
    run_main, words, proteins, counted, fair_esm_vectors, tmp_path, monkeypatch, collide
):
    if collide:
        monkeypatch.setattr(groups, "hash", lambda letters: 0, raising=False)
    ended = run_main(*words(proteins))
    assert ended.code == 0, ended.log
    vectors = rows_of(tmp_path / "out.h5")
    assert_equal_by(proteins, vectors)
    np.testing.assert_allclose(vectors, fair_esm_vectors(proteins), rtol=0, atol=1e-5)
    found = report(tmp_path / "out.h5")
    assert found["distinct"] == {"records": {"count": 8, "share": round(8 / 60, 4)}}
    assert "in.faa: 8 of 60 records are distinct, and computed once" in ended.log
    assert found["totals"]["records"] == 60
    assert found["totals"]["tokens"] == sum(LENGTHS) + 2 * 8
    assert sum(counted) == found["totals"]["tokens"]


def test_proteins_that_are_equal_once_cut_and_in_upper_case(
    run_main, words, counted, fair_esm_vectors, tmp_path
):
    ended = run_main(*words(["MKVLA", "mkv", "MKV", "MKVMM", "MK"], "--data.max_length", 3))
    assert ended.code == 0, ended.log
    vectors = rows_of(tmp_path / "out.h5")
    assert_equal_by(["MKV"] * 4 + ["MK"], vectors)
    np.testing.assert_allclose(vectors, fair_esm_vectors(["MKV"] * 4 + ["MK"]), rtol=0, atol=1e-5)
    assert sum(counted) == 5 + 4


@pytest.mark.parametrize("workers", [0, 2])
def test_more_copies_than_a_batch_takes(
    run_main, words, random_proteins, fair_esm_vectors, counted, tmp_path, monkeypatch, workers
):
    monkeypatch.setattr(groups, "COPIES", 20)
    proteins = repeated(random_proteins(LENGTHS[:3]), 70) + random_proteins([44, 9], seed=1)
    ended = run_main(*words(proteins, "--data.num_workers", workers))
    assert ended.code == 0, ended.log
    vectors = rows_of(tmp_path / "out.h5")
    assert_equal_by(proteins, vectors)
    np.testing.assert_allclose(vectors, fair_esm_vectors(proteins), rtol=0, atol=1e-5)
    assert len(counted) < 8


def test_real_group_of_many_rows_is_written_in_little_memory(run_main, words, tmp_path):
    count = 3 * groups.COPIES
    ended = run_main(*words(["MKVLAAGIV"] * count + ["MKV"]))
    assert ended.code == 0, ended.log
    vectors = rows_of(tmp_path / "out.h5")
    assert len({row.tobytes() for row in vectors[:count]}) == 1
    found = report(tmp_path / "out.h5")
    assert found["totals"] == {
        "records": count + 1, "tokens": 3 * 11 + 5, "packs": 4, "failures": 0,
    }  # fmt: skip


# What fails ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("order")
def test_failure_of_a_sequence_is_that_of_all_its_rows(
    run_main, words, random_proteins, poisoned_file, tmp_path
):
    different = random_proteins(LENGTHS)
    different[1] = different[1][:-1] + "W"
    proteins = repeated(different, 30)
    failing = [f"p{row}" for row, protein in enumerate(proteins) if "W" in protein]
    ended = run_main(*words(proteins, weights=poisoned_file))
    assert ended.code == 3, ended.log
    [line] = Path(f"{tmp_path}/out.h5.failures.jsonl").read_text().splitlines()
    assert json.loads(line)["sequence_ids"] == failing
    more = ("--model.on_instability", "skip", "--writer.overwrite", "true")
    ended = run_main(*words(proteins, *more, weights=poisoned_file))
    assert ended.code == 0, ended.log
    [line] = Path(f"{tmp_path}/out.h5.failures.jsonl").read_text().splitlines()
    assert json.loads(line)["sequence_ids"] == failing
    with h5py.File(tmp_path / "out.h5") as file:
        assert [f"p{row}" for row in file["failed"]] == failing
    lost = np.isnan(rows_of(tmp_path / "out.h5"))
    assert lost.all(axis=1).tolist() == ["W" in protein for protein in proteins]
    assert lost.any(axis=1).tolist() == ["W" in protein for protein in proteins]
    found = report(tmp_path / "out.h5")
    assert found["failed_rows"] == found["totals"]["failures"] == len(failing) > 1


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("most", [100, 119])
def test_halves_of_a_pack_hold_each_sequence_once(
    run_main, words, proteins, fair_esm_vectors, tmp_path, monkeypatch, most
):
    forward, seen = ESM2.forward, []

    def cramped(self, tokens, *arguments, **options):
        if len(tokens) > most:
            raise MemoryError
        seen.append(len(tokens))
        return forward(self, tokens, *arguments, **options)

    monkeypatch.setattr(ESM2, "forward", cramped)
    policy = ("--model.on_instability", "skip")
    ended = run_main(*words(proteins, *policy, "--data.tokens_per_batch", 400))
    assert ended.code == 0, ended.log
    vectors = rows_of(tmp_path / "out.h5")
    fits = [len(protein) + 2 <= most for protein in proteins]
    expected = fair_esm_vectors(proteins)
    expected[np.logical_not(fits)] = np.nan
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-5)
    assert_equal_by(proteins, vectors)
    assert sum(seen) == sum(length + 2 for length in LENGTHS if length + 2 <= most)
    lines = Path(f"{tmp_path}/out.h5.failures.jsonl").read_text().splitlines()
    too_large = [f"p{row}" for row, fit in enumerate(fits) if not fit]
    assert [json.loads(line)["sequence_ids"] for line in lines] == [too_large]


# The other models ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dnabert_folder(plain_dnabert_s, tmp_path_factory):
    return plain_dnabert_s(4).save(tmp_path_factory.mktemp("weights") / "dnabert")


def test_equal_dna_has_equal_vectors_computed_once(
    run_main, plain_dnabert_s, dnabert_folder, write_fasta, tmp_path
):
    generator = np.random.default_rng(0)
    different = ["".join(generator.choice(list("ACGT"), n)) for n in (70, 700, 33, 5, 200)]
    records = repeated(different, 40)
    written = [s.replace("T", "U").lower() if row % 3 == 0 else s for row, s in enumerate(records)]
    ended = run_main(
        *("--config", "dnabert_s.yaml", "--model.weights", dnabert_folder),
        *("--data.path", write_fasta(tmp_path / "in.fna", written), "--writer.path", "out.h5"),
        *("--data.tokens_per_batch", 60, "--trainer.precision", 32, "--data.num_workers", 0),
    )
    assert ended.code == 0, ended.log
    vectors = rows_of(tmp_path / "out.h5")
    assert_equal_by(records, vectors)
    plain, tokenizer = plain_dnabert_s(4), DNATokenizer()
    tokens = [tokenizer.encode([s.encode()])[0] for s in records]
    expected = np.stack([plain.hidden(t)[-1].mean(0).numpy() for t in tokens])
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-5)
    found = report(tmp_path / "out.h5")
    assert found["distinct"] == {"records": {"count": 5, "share": 0.125}}
    assert found["totals"]["tokens"] == sum(
        map(len, {s: t for s, t in zip(records, tokens, strict=True)}.values())
    )


@pytest.fixture(scope="module")
def classifier_file(save_classifier, tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("weights") / "c.pth", 48 + 32, 16)


@pytest.fixture(scope="module")
def contigs(tmp_path_factory):
    """Contigs, some of them again, some with other codons for the same residues."""
    generator = np.random.default_rng(0)
    different = ["".join(generator.choice(CODONS, 40)) for _ in range(5)]
    different += [s.replace("GCC", "GCA") for s in different[:3]] + [different[0] + "GC"]
    path = tmp_path_factory.mktemp("contigs") / "in.fna"
    records = repeated(different, 25)
    path.write_text("".join(f">r{i}\n{s}\n" for i, s in enumerate(records)))
    return path


@pytest.fixture
def call_words(contigs, weights_file, dnabert_folder, classifier_file):
    """Words of a run from contigs to calls, its packs small."""

    def make(*more, esm2=weights_file, output="calls"):
        return [
            *("--config", "virnucpro.yaml", "--data.path", contigs, "--data.num_workers", 0),
            *("--data.tokens_per_batch", 200, "--trainer.precision", 32),
            *("--model.esm2.weights", esm2, "--model.dnabert_s.weights", dnabert_folder),
            *("--model.classifier", classifier_file, "--writer.save_embeddings", "true"),
            *("--writer.path", output, *more),
        ]

    return make


@pytest.fixture
def orfs(contigs, tmp_path):
    """Ids, proteins and nucleotides of all ORFs."""
    folder = tmp_path / "orfs"
    folder.mkdir()
    store: OrfStore = write_orfs(read_records(contigs, DNA, folder), 500)
    rows = np.arange(len(store))
    return store.ids(rows), store.sequences("protein", rows), store.sequences("nucleotide", rows)


def scores_of(folder):
    lines = (folder / "prediction_results.txt").read_text().splitlines()[1:]
    return {name: scores for name, *scores in (line.split("\t") for line in lines)}


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("copies", [3, 8192])
def test_equal_orfs_have_equal_scores_and_vectors(
    run_main, call_words, orfs, fair_esm_vectors, plain_dnabert_s, seeded_classifier,
    plain_probabilities, tmp_path, monkeypatch, copies,
):  # fmt: skip
    monkeypatch.setattr(groups, "COPIES", copies)
    ended = run_main(*call_words())
    assert ended.code == 0, ended.log
    ids, proteins, nucleotides = orfs
    pairs = list(zip(proteins, nucleotides, strict=True))
    assert len(ids) > len(set(pairs)) > len(set(proteins))
    vectors = []
    for name in ("dnabert_s", "esm2"):
        with h5py.File(tmp_path / "calls" / f"{name}.h5") as file:
            assert file["sequence_ids"].asstr()[:].tolist() == ids
            vectors.append(file["embeddings"][:])
    assert_equal_by(pairs, np.hstack(vectors))
    assert_equal_by(proteins, vectors[1])
    plain, tokenizer = plain_dnabert_s(4), DNATokenizer()
    tokens = [tokenizer.encode([s])[0] for s in nucleotides]
    dna = np.stack([plain.hidden(t)[-1].mean(0).numpy() for t in tokens])
    expected = np.hstack((dna, fair_esm_vectors([p.decode() for p in proteins])))
    np.testing.assert_allclose(np.hstack(vectors), expected, rtol=0, atol=2e-5)
    scores = scores_of(tmp_path / "calls")
    assert_equal_by(pairs, np.array([" ".join(scores[name]).encode() for name in ids]))
    classified = plain_probabilities(seeded_classifier(80, 16), expected)
    np.testing.assert_allclose(
        np.array([scores[name][1:] for name in ids], float), classified, rtol=0, atol=1e-5
    )
    counts = {
        "proteins": {"count": len(set(proteins)), "share": round(len(set(proteins)) / len(ids), 4)},
        "orfs": {"count": len(set(pairs)), "share": round(len(set(pairs)) / len(ids), 4)},
    }
    assert json.loads((tmp_path / "calls/summary.json").read_text())["distinct"] == counts
    assert report(tmp_path / "calls")["distinct"] == counts
    if copies == 8192:
        computed = sum(len(protein) + 2 for protein in set(proteins))
        assert report(tmp_path / "calls")["totals"]["tokens"] == computed


def test_failing_protein_leaves_all_its_orfs_without_a_score(
    run_main, call_words, orfs, reference, save_published, tmp_path
):
    from virnucpro_pl.input.protein_tokens import ProteinTokenizer

    ids, proteins, nucleotides = orfs
    state = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    rare = min(set(b"".join(proteins)), key=lambda letter: sum(letter in p for p in proteins))
    tokens, _ = ProteinTokenizer().encode([bytes([rare])])
    state["embed_tokens.weight"][tokens[1]] = float("nan")
    path = save_published(state, tmp_path / "poisoned.pt")
    ended = run_main(*call_words("--model.esm2.on_instability", "skip", esm2=path))
    assert ended.code == 0, ended.log
    failing = {name for name, protein in zip(ids, proteins, strict=True) if rare in protein}
    assert 1 < len(failing) < len(ids)
    lines = Path(f"{tmp_path}/calls.failures.jsonl").read_text().splitlines()
    named = [name for line in lines for name in json.loads(line)["sequence_ids"]]
    assert sorted(named) == sorted(failing)
    scores = scores_of(tmp_path / "calls")
    assert {name for name, found in scores.items() if found[0] == "NA"} == failing
    pairs = list(zip(proteins, nucleotides, strict=True))
    assert_equal_by(
        [pair if name not in failing else None for name, pair in zip(ids, pairs, strict=True)],
        np.array([" ".join(scores[name]).encode() for name in ids]),
    )


# Resuming -----------------------------------------------------------------------------------------

SLOW = """
import time
import virnucpro_pl.input.groups as groups
import virnucpro_pl.predict.sequence_embedder as embedder
from virnucpro_pl.cli.main import main

groups.COPIES = {copies}
step = embedder.SequenceEmbedder.predict_step
def slow(self, *arguments):
    time.sleep(0.1)
    return step(self, *arguments)
embedder.SequenceEmbedder.predict_step = slow
main()
"""


def committed(output):
    return len(list(Path(f"{output}.parts").glob("part-*.h5")))


@pytest.mark.slow
@pytest.mark.parametrize("copies", [8, 8192])
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_stopped_and_resumed_equal_rows_are_equal_whatever_the_budget(
    start, words, random_proteins, fair_esm_vectors, tmp_path, copies, ranks, number
):
    (tmp_path / "slow.py").write_text(SLOW.format(copies=copies))
    proteins = repeated(random_proteins([40 + n for n in range(40)]), 300)
    proteins[100:140] = ["MKVLAAGIV"] * 40  # with few copies to a batch, several
    output = tmp_path / "out.h5"
    for attempt, (budget, count) in enumerate([(150, ranks), (330, 3 - ranks), (200, ranks)]):
        more = ("--data.tokens_per_batch", budget, "--writer.commit_seconds", 0)
        command = start("predict", *words(proteins, *more, ranks=count), launcher=["slow.py"])
        if attempt < 2:
            before = committed(output)
            command.wait_for(lambda before=before: committed(output) > before + 1)
            command.kill(number)
            assert command.wait().code != 0
            command.assert_nothing_left()
    ended = command.wait(120)
    assert ended.code == 0, ended.log
    assert "Continuing: " in ended.log
    vectors = rows_of(output)
    assert_equal_by(proteins, vectors)
    np.testing.assert_allclose(vectors, fair_esm_vectors(proteins), rtol=0, atol=1e-5)


@pytest.mark.parametrize("receipts", [False, True])
def test_committed_rows_whose_equals_are_not_are_computed_again_with_them(
    run_main, words, random_proteins, fair_esm_vectors, tmp_path, monkeypatch, receipts
):
    if receipts:
        monkeypatch.setattr("virnucpro_pl.output.merge.KEPT_BYTES", 0)
    monkeypatch.setattr(groups, "COPIES", 10)
    proteins = [*random_proteins([30, 31]), *["MKVLAAGIV"] * 40, *random_proteins([50, 60])]
    stopped = ("--trainer.limit_predict_batches", 3, "--writer.commit_seconds", 0)
    ended = run_main(*words(proteins, *stopped))
    assert ended.code == 1
    monkeypatch.setattr("virnucpro_pl.models.esm2.ESM2.forward", _shifted(ESM2.forward))
    ended = run_main(*words(proteins, "--data.tokens_per_batch", 100))
    assert ended.code == 0, ended.log
    assert "rows will be computed again, together with others that have the same" in ended.log
    vectors = rows_of(tmp_path / "out.h5")
    assert_equal_by(proteins, vectors)
    shifted = np.abs(vectors - fair_esm_vectors(proteins)).max(axis=1) > 0.5
    assert shifted[2:].all()  # the first two were in a part of their own


def _shifted(forward):
    """As another device might compute, but more so."""

    def shifted(*arguments, **options):
        return forward(*arguments, **options) + 1

    return shifted


def test_uninterrupted_and_resumed_runs_are_equal_bit_by_bit(run_main, words, proteins, tmp_path):
    assert run_main(*words(proteins)).code == 0
    stopped = ("--trainer.limit_predict_batches", 2, "--writer.commit_seconds", 0)
    assert run_main(*words(proteins, *stopped, output="again.h5")).code == 1
    ended = run_main(*words(proteins, output="again.h5"))
    assert ended.code == 0, ended.log
    assert "Continuing: " in ended.log
    np.testing.assert_array_equal(rows_of(tmp_path / "again.h5"), rows_of(tmp_path / "out.h5"))


class OwnStep(ESM2Embedder):
    """A user's step of before, which knows nothing of sequences that rows share."""

    def predict_step(self, batch, batch_idx=0):
        """A vector for each sequence of the pack."""
        return Embeddings(batch.rows, self.pool(self(batch), batch).cpu())


def test_step_of_a_users_own_gets_each_sequence_once_for_each_row(
    proteins, weights_file, write_fasta, tmp_path
):
    def vectors(kind):
        options = {"logger": False, "accelerator": "cpu", "enable_progress_bar": False}
        data = SequenceDataModule(fasta, tokens_per_batch=150, num_workers=0)
        made = Trainer(**options).predict(kind(weights=str(weights_file), enable_fp16=False), data)
        rows = np.concatenate([p.rows.numpy() for p in made])
        assert sorted(rows.tolist()) == list(range(len(proteins)))
        return np.concatenate([p.vectors.numpy() for p in made])[np.argsort(rows)]

    fasta = write_fasta(tmp_path / "in.faa", proteins)
    np.testing.assert_allclose(vectors(OwnStep), vectors(ESM2Embedder), rtol=0, atol=1e-5)
