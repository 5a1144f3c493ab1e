"""What becomes of sequences that are not finite, or for which there is no memory."""

import json

import h5py
import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from virnucpro_pl import ESM2Embedder, SequenceDataModule
from virnucpro_pl.input.protein_tokens import ProteinTokenizer
from virnucpro_pl.models.esm2 import ESM2

LENGTHS = [30, 80, 5, 61, 200, 44, 120, 17]


@pytest.fixture(autouse=True, params=["looking ahead", "one by one"])
def order(request):
    """As on a GPU, and as on a CPU."""
    if request.param == "looking ahead":
        request.getfixturevalue("look_ahead")


def failures(output):
    path = output.with_name(f"{output.name}.failures.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def run_json(output):
    return json.loads(output.with_name(f"{output.name}.run.json").read_text())


@pytest.fixture
def proteins(random_proteins):
    proteins = random_proteins(LENGTHS)
    for row in (1, 4):
        proteins[row] = proteins[row][:-1] + "W"
    return proteins


@pytest.fixture(scope="module")
def large(reference, save_published, tmp_path_factory):
    """The reference, but the embedding of W is beyond FP16; and its file."""
    from esm.model.esm2 import ESM2 as FairESM2

    model = FairESM2(3, 32, 4, alphabet="ESM-1b", token_dropout=True).eval()
    model.load_state_dict(reference.state_dict())
    tokens, _ = ProteinTokenizer().encode([b"W"])
    model.embed_tokens.weight.data[tokens[1]] *= 1e6
    path = tmp_path_factory.mktemp("weights") / "large.pt"
    return model.requires_grad_(False), save_published(model.state_dict(), path)


@pytest.fixture
def run(run_main, predict_words, write_fasta, proteins, tmp_path):
    """Run a small prediction in this process; return it and its output file."""

    def run(weights, *more, sequences=proteins):
        fasta, output = write_fasta(tmp_path / "in.faa", sequences), tmp_path / "out.h5"
        _, *words = predict_words(weights, fasta, output, "--data.tokens_per_batch", 150, *more)
        return run_main(*words), output

    return run


@pytest.mark.parametrize("policy", ["skip", "fp32"])  # in FP32 there is nothing wider to turn to
def test_unstable_sequences_are_left_out_listed_and_counted(
    run, poisoned_file, proteins, fair_esm_vectors, policy
):
    ended, output = run(poisoned_file, "--model.on_instability", policy)
    assert ended.code == 0, ended.log
    assert "Wrote out.h5, in which 2 FAILED rows are NaN" in ended.log.replace(
        f"{output.parent}/", ""
    )
    with h5py.File(output) as file:
        assert file["failed"][()].tolist() == [1, 4]
        assert file["recomputed"][()].tolist() == []
        assert len(file["sequence_ids"]) == len(proteins)
        vectors = file["embeddings"][()]
    fine = [row for row in range(len(proteins)) if row not in (1, 4)]
    expected = fair_esm_vectors([proteins[row] for row in fine])
    np.testing.assert_allclose(vectors[fine], expected, rtol=0, atol=1e-5)
    assert np.isnan(vectors[[1, 4]]).all()
    lines = failures(output)
    assert [line["sequence_ids"] for line in lines] == [["p1"], ["p4"]]
    assert {line["status"] for line in lines} == {"numerical_instability"}
    assert run_json(output)["failure_rate"] == 2 / len(proteins)
    assert run_json(output)["totals"]["failures"] == 2


def test_unstable_sequence_raised_names_the_other_choices(run, poisoned_file):
    ended, output = run(poisoned_file)
    assert ended.code == 3, ended.log
    assert "on_instability: fp32" in ended.log
    assert "or skip" in ended.log
    assert not output.exists()


def test_unstable_in_half_is_computed_again_in_fp32(run, large, proteins, fair_esm_vectors):
    model, path = large
    half = ("--trainer.precision", "16-true", "--model.on_instability", "fp32")
    ended, output = run(path, *half)
    assert ended.code == 0, ended.log
    assert "computed again in FP32" in ended.log
    with h5py.File(output) as file:
        assert file["recomputed"][()].tolist() == [1, 4]
        assert file["failed"][()].tolist() == []
        vectors = file["embeddings"][()]
    expected = fair_esm_vectors(proteins, model)
    np.testing.assert_allclose(vectors[[1, 4]], expected[[1, 4]], rtol=0, atol=1e-5)
    rounding = np.abs(vectors - expected).max(axis=1)
    assert 1e-5 < rounding[0] < 0.05  # only those two were
    assert not output.with_name("out.h5.failures.jsonl").exists()


@pytest.fixture
def cramped(monkeypatch):
    """Let the device run out of memory from so many tokens on."""

    def cramp(most, monkeypatch=monkeypatch):
        forward, seen = ESM2.forward, []

        def cramped(self, tokens, *arguments, **options):
            seen.append(len(tokens))
            if len(tokens) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 TiB")
            return forward(self, tokens, *arguments, **options)

        monkeypatch.setattr(ESM2, "forward", cramped)
        return seen

    return cramp


def test_out_of_memory_halves_packs_from_there_on(
    run, cramped, weights_file, random_proteins, fair_esm_vectors
):
    seen = cramped(70)
    proteins = random_proteins([20, 30, 25, 31, 22, 60, 28, 33, 40])
    ended, output = run(weights_file, sequences=proteins)
    assert ended.code == 0, ended.log
    assert "out of memory with 138 tokens; from here on packs have at most 69" in ended.log
    with h5py.File(output) as file:
        expected = fair_esm_vectors(proteins)
        np.testing.assert_allclose(file["embeddings"], expected, rtol=0, atol=1e-5)
        assert file["sequence_ids"].asstr()[:].tolist() == [f"p{i}" for i in range(len(proteins))]
    assert seen[0] > 70  # once, not at every pack
    assert max(seen[1:]) <= 70


def test_out_of_memory_at_a_later_pack_halves_it_alone(
    run, cramped, weights_file, random_proteins, fair_esm_vectors
):
    seen = cramped(100)
    proteins = random_proteins([20, 30, 25, 31, 22, 60, 28, 33, 40])
    fitting = ("--data.tokens_per_batch", 90)
    ended, output = run(weights_file, *fitting, sequences=[*proteins, "M" * 98, "M" * 99, "MK"])
    assert ended.code == 1
    assert "out of memory with p10 alone, of length 99" in ended.log
    assert output.with_name("out.h5.parts").exists()
    fitting = ("--data.tokens_per_batch", 130)
    ended, output = run(weights_file, *fitting, "--writer.overwrite", "true", sequences=proteins)
    assert ended.code == 0, ended.log
    assert max(seen) > 100
    with h5py.File(output) as file:
        expected = fair_esm_vectors(proteins)
        np.testing.assert_allclose(file["embeddings"], expected, rtol=0, atol=1e-5)


def test_budget_of_a_small_device_is_forgotten_for_another_trainer(
    cramped, weights_file, write_fasta, random_proteins, tmp_path
):
    fasta = write_fasta(tmp_path / "in.faa", random_proteins([20, 30, 25, 31]))
    model = ESM2Embedder(weights=str(weights_file), enable_fp16=False)
    largest = []
    for most in (70, 1000):  # as if the second Trainer had a larger device
        with pytest.MonkeyPatch.context() as patch:
            seen = cramped(most, patch)
            quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
            trainer = Trainer(accelerator="cpu", enable_checkpointing=False, **quiet)
            trainer.predict(model, SequenceDataModule(fasta, tokens_per_batch=150, num_workers=0))
        largest.append(seen[-1])
    assert largest[0] <= 70
    assert largest[1] == 20 + 30 + 25 + 31 + 4 * 2


def test_vectors_alone_not_finite_are_found(run, save_published, reference, tmp_path):
    state = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    state["emb_layer_norm_after.weight"] *= 2e38  # each state is finite, the sum over residues not
    path = save_published(state, tmp_path / "large.pt")
    ended, output = run(path, "--model.on_instability", "skip", "--model.enable_fp16", "false",
                        sequences=["M" * 40, "MKVLA"])  # fmt: skip
    assert ended.code == 0, ended.log
    with h5py.File(output) as file:
        lost = file["failed"][()].tolist()
        assert lost
        assert np.isnan(file["embeddings"][lost]).all()
        assert np.isfinite(np.delete(file["embeddings"][()], lost, axis=0)).all()
    assert "Inf=0" not in str(failures(output)[0])


def test_single_sequence_too_large_is_left_out_or_ends_the_run(run, cramped, weights_file):
    cramped(100)
    ended, output = run(weights_file)
    assert ended.code == 1, ended.log
    assert "out of memory with p4 alone, of length 200" in ended.log
    assert failures(output)[-1]["status"] == "out_of_memory"
    assert not output.exists()
    ended, output = run(weights_file, "--model.on_instability", "skip")
    assert ended.code == 0, ended.log
    with h5py.File(output) as file:
        assert file["failed"][()].tolist() == [4, 6]
        assert np.isnan(file["embeddings"][[4, 6]]).all()
        assert np.isfinite(file["embeddings"][[0, 1, 2, 3, 5, 7]]).all()
    last = failures(output)[-1]
    assert (last["status"], last["sequence_ids"]) == ("out_of_memory", ["p6"])


def test_other_errors_are_no_lack_of_memory(run, weights_file, monkeypatch):
    def fail(self, *arguments):
        raise RuntimeError("a shape is wrong")

    monkeypatch.setattr(ESM2, "forward", fail)
    ended, output = run(weights_file, "--model.on_instability", "skip")
    assert ended.code == 1
    assert "a shape is wrong" in ended.log
    assert failures(output)[-1]["status"] == "error"
