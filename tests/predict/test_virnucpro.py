"""VirNucPro and VirusClassifier inside a Trainer, against the formulas of all three networks."""

import json
from itertools import product

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from virnucpro_pl import (
    ContigDataModule,
    DNABERTSEmbedder,
    EmbeddingPairDataModule,
    ESM2Embedder,
    FailureLog,
    NumericalInstabilityError,
    PrecisionFromEnv,
    SequenceDataModule,
    TableWriter,
    VirNucPro,
    VirusClassifier,
)
from virnucpro_pl.errors import UsageError, WeightsError
from virnucpro_pl.input.dna_tokens import DNATokenizer
from virnucpro_pl.models import dnabert_s_files, esm2_files

FEATURES = 48 + 32
STOPS = ("TAA", "TAG", "TGA")
RECORDS = {"a": "GCCAAC" * 20, "short": "AC", "b": "GGCTGGCGGCTGG", "closed": "TAATTAATTAA" * 3}


@pytest.fixture(scope="module")
def contigs(tmp_path_factory):
    """A file of four records, of which two have ORFs."""
    path = tmp_path_factory.mktemp("contigs") / "in.fa"
    path.write_text("".join(f">{name}\n{letters}\n" for name, letters in RECORDS.items()))
    return path


@pytest.fixture(scope="module")
def dnabert_folder(plain_dnabert_s, tmp_path_factory):
    return plain_dnabert_s(4).save(tmp_path_factory.mktemp("weights") / "dnabert")


@pytest.fixture(scope="module")
def classifier_file(save_classifier, tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("weights") / "c.pth", FEATURES, 16)


@pytest.fixture
def tiny(weights_file, dnabert_folder, classifier_file):
    """Make a VirNucPro of three small networks."""

    def make(esm=weights_file, dnabert=dnabert_folder, classifier=classifier_file, fp16=(1, 1, 1)):
        esm2_embedder = ESM2Embedder(weights=str(esm), enable_fp16=bool(fp16[0]))
        dna_embedder = DNABERTSEmbedder(weights=str(dnabert), enable_fp16=bool(fp16[1]))
        return VirNucPro(esm2_embedder, dna_embedder, str(classifier), bool(fp16[2]))

    return make


def predict(model, data, *callbacks, **options):
    """Predict on the CPU; the Trainer and what it returned."""
    options = {"logger": False, "enable_checkpointing": False, **options}
    trainer = Trainer(
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **options,
    )
    return trainer, trainer.predict(model, data)


def joined(batches):
    """Scores and features of all batches, in the order of the rows."""
    order = torch.cat([batch.rows for batch in batches]).argsort()
    return (
        torch.cat([batch.scores for batch in batches])[order].numpy(),
        torch.cat([torch.cat((b.dnabert_s, b.esm2), 1) for b in batches])[order].numpy(),
    )


@pytest.mark.parametrize("budget", [30, 10_000])
def test_virnucpro_equals_the_three_networks_alone(
    tiny, contigs, plain_dnabert_s, fair_esm_vectors, seeded_classifier, plain_probabilities, budget
):
    data = ContigDataModule(contigs, tokens_per_batch=budget, num_workers=0)
    _, batches = predict(tiny(fp16=(1, 0, 1)), data)
    assert len(batches) == (1 if budget == 10_000 else 8)
    scores, features = joined(batches)
    rows = np.arange(len(data.store))
    proteins = [s.decode() for s in data.store.sequences("protein", rows)]
    tokenizer, plain = DNATokenizer(), plain_dnabert_s(4)
    tokens = [tokenizer.encode([s])[0] for s in data.store.sequences("nucleotide", rows)]
    dna = torch.stack([plain.hidden(t)[-1].mean(0) for t in tokens]).numpy()
    expected = np.hstack((dna, fair_esm_vectors(proteins)))
    assert np.abs(features - expected).max() < 2e-5
    classified = plain_probabilities(seeded_classifier(FEATURES, 16), expected)
    assert np.abs(scores - classified).max() < 1e-5
    assert 0.01 < scores[:, 1].std()


def genes(count):
    rng = np.random.default_rng(5)
    codons = ["".join(c) for c in product("ACGT", repeat=3) if "".join(c) not in STOPS]
    return ["".join(rng.choice(codons, 166)) + "AC" for _ in range(count)]


@pytest.mark.usefixtures("bf16_units")
@pytest.mark.parametrize("fp16", [(1, 1, 1), (0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_virnucpro_any_enable_fp16_false_is_fp32(tiny, contigs, fp16):
    model = tiny(fp16=fp16)
    trainer, _ = predict(model, ContigDataModule(contigs, num_workers=0))
    assert trainer.precision == ("bf16-mixed" if all(fp16) else "32-true")
    dtypes = {p.dtype for p in model.parameters()}
    assert dtypes == ({torch.float32, torch.bfloat16} if all(fp16) else {torch.float32})


def test_virnucpro_switch_gives_fp32(tiny, contigs, monkeypatch):
    monkeypatch.setenv("VIRNUCPRO_DISABLE_FP16", "1")
    trainer, _ = predict(tiny(), ContigDataModule(contigs, num_workers=0), precision="16-mixed")
    assert trainer.precision == "32-true"


@pytest.mark.usefixtures("bf16_units")
def test_virnucpro_under_autocast_classifies_in_fp32(tiny, contigs):
    torch.set_float32_matmul_precision("high")
    model = tiny()
    trainer, batches = predict(model, ContigDataModule(contigs, num_workers=0))
    assert trainer.precision == "bf16-mixed"
    assert torch.get_float32_matmul_precision() == "highest"
    scores, features = joined(batches)
    assert scores.dtype == features.dtype == np.float32
    alone = model.classifier.probabilities(torch.from_numpy(features))
    assert np.abs(scores - alone.numpy()).max() < 1e-6


def test_virnucpro_brings_its_callbacks_along(tiny, contigs):
    trainer, _ = predict(tiny(), ContigDataModule(contigs, num_workers=0))
    kinds = {type(callback) for callback in trainer.callbacks}
    assert {PrecisionFromEnv, FailureLog} <= kinds


@pytest.mark.parametrize("source", ["missing.pth", "damaged.pth"])
def test_virnucpro_bad_classifier_is_found_before_weights_are(
    tiny, contigs, tmp_path, monkeypatch, source
):
    def never(*arguments):
        raise AssertionError("weights were looked for")

    monkeypatch.setattr(esm2_files, "find_weights", never)
    monkeypatch.setattr(dnabert_s_files, "find_weights", never)
    (tmp_path / "damaged.pth").write_bytes(b"junk")
    model = tiny(classifier=tmp_path / source)
    with pytest.raises(WeightsError, match=source):
        predict(model, ContigDataModule(contigs, num_workers=0))


def test_virnucpro_classifier_of_other_models_names_both_widths(
    tiny, contigs, save_classifier, tmp_path
):
    model = tiny(classifier=save_classifier(tmp_path / "c.pth", 3328, 4))
    with pytest.raises(WeightsError, match=r"c\.pth takes 3328 features, .* together give 80"):
        predict(model, ContigDataModule(contigs, num_workers=0))


@pytest.mark.parametrize("poisoned", ["esm2", "dnabert_s"])
def test_virnucpro_unstable_encoder_names_itself_and_exactly_its_orfs(
    tiny, contigs, poisoned_file, plain_dnabert_s, tmp_path, poisoned
):
    if poisoned == "esm2":
        model = tiny(esm=poisoned_file)
    else:
        plain = plain_dnabert_s(4, seed=1)
        state = {name: tensor.clone() for name, tensor in plain.state.items()}
        token = int(DNATokenizer().encode([b"GGCTGGCGGCTGG"])[0][1])  # the first of b_chunk_1F1
        state["embeddings.word_embeddings.weight"][token] = torch.nan
        folder = plain.save(tmp_path / "dnabert")
        torch.save(state, folder / "pytorch_model.bin")
        model = tiny(dnabert=folder)
    data = ContigDataModule(contigs, num_workers=0)
    with pytest.raises(NumericalInstabilityError) as caught:
        predict(model, data, TableWriter(tmp_path / "out"))
    rows = np.arange(len(data.store))
    names = data.store.ids(rows)
    if poisoned == "esm2":
        bad = [b"W" in protein for protein in data.store.sequences("protein", rows)]
    else:
        tokens = [model.dnabert_s.tokenizer.encode([s])[0] for s in
                  data.store.sequences("nucleotide", rows)]  # fmt: skip
        bad = [token in row for row in tokens]
    expected = [name for name, is_bad in zip(names, bad, strict=True) if is_bad]
    assert 0 < len(expected) < len(names)
    assert caught.value.sequence_ids == expected
    name = model.esm2.name if poisoned == "esm2" else model.dnabert_s.name
    assert f"Numerical instability in {name}" in str(caught.value)
    [line] = (tmp_path / "out.failures.jsonl").read_text().splitlines()
    assert json.loads(line)["sequence_ids"] == expected
    assert not (tmp_path / "out").exists()


def test_models_refuse_data_of_other_models(tiny, contigs):
    with pytest.raises(UsageError, match="VirNucPro needs a ContigDataModule"):
        predict(tiny(), SequenceDataModule(contigs))
    with pytest.raises(UsageError, match="VirusClassifier needs an EmbeddingPairDataModule"):
        predict(VirusClassifier("random"), ContigDataModule(contigs))
    with pytest.raises(UsageError, match="ESM2Embedder needs a SequenceDataModule"):
        predict(ESM2Embedder(weights="random", name="esm2_t6_8M_UR50D"), ContigDataModule(contigs))


@pytest.fixture
def pair(write_embeddings, tmp_path):
    """Embedding files of 600 ORFs, 40 + 20 numbers wide."""
    vectors = np.random.default_rng(0).normal(size=(600, 60)).astype(np.float32)
    ids = [f"c_chunk_{i + 1}F1" for i in range(600)]
    write_embeddings(tmp_path / "dna.h5", ids, vectors[:, :40])
    write_embeddings(tmp_path / "esm.h5", ids, vectors[:, 40:])
    return vectors


def classify(tmp_path, classifier, *callbacks, **options):
    data = EmbeddingPairDataModule(tmp_path / "dna.h5", tmp_path / "esm.h5", num_workers=0)
    return predict(VirusClassifier(str(classifier)), data, *callbacks, **options)


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed", "64-true"])
def test_virus_classifier_in_any_precision_is_fp32_in_blocks_of_256(
    pair, save_classifier, seeded_classifier, plain_probabilities, tmp_path, precision
):
    file = save_classifier(tmp_path / "c.pth", 60, 16)
    trainer, batches = classify(tmp_path, file, precision=precision)
    if precision in ("32-true", "16-mixed"):
        assert trainer.precision == "32-true"
    assert [len(batch.rows) for batch in batches] == [256, 256, 88]
    scores = torch.cat([batch.scores for batch in batches])
    assert scores.dtype == torch.float32
    expected = plain_probabilities(seeded_classifier(60, 16), pair)
    assert np.abs(scores.numpy() - expected).max() < 1e-6


def test_virus_classifier_row_without_embedding_has_no_score(
    pair, save_classifier, write_embeddings, tmp_path
):
    file = save_classifier(tmp_path / "c.pth", 60, 16)
    _, healthy = classify(tmp_path, file)
    pair[300] = np.nan
    ids = [f"c_chunk_{i + 1}F1" for i in range(600)]
    write_embeddings(tmp_path / "esm.h5", ids, pair[:, 40:])
    _, batches = classify(tmp_path, file)
    before, after = (torch.cat([b.scores for b in run]) for run in (healthy, batches))
    assert after[300].isnan().all()
    others = torch.arange(600) != 300
    assert torch.equal(before[others], after[others])


def test_virus_classifier_overflow_is_instability_and_named(
    pair, save_classifier, write_embeddings, tmp_path
):
    file = save_classifier(tmp_path / "c.pth", 60, 16)
    pair[300] = 3e38
    ids = [f"c_chunk_{i + 1}F1" for i in range(600)]
    write_embeddings(tmp_path / "esm.h5", ids, pair[:, 40:])
    with pytest.raises(NumericalInstabilityError, match="the classifier") as caught:
        classify(tmp_path, file)
    assert caught.value.sequence_ids == ["c_chunk_301F1"]


def test_virus_classifier_other_width_names_both(pair, save_classifier, tmp_path):
    with pytest.raises(WeightsError, match=r"takes 61 features, .* give 60"):
        classify(tmp_path, save_classifier(tmp_path / "c.pth", 61, 4))
