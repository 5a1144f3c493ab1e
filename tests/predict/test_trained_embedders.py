"""A classifier that knows its embedders refuses others, by name and before anything is computed."""

import shutil
import threading
import time

import h5py
import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from virnucpro_pl import ContigDataModule, DNABERTSEmbedder, ESM2Embedder, VirNucPro
from virnucpro_pl.embeddings.embedding_file import EmbeddingFile
from virnucpro_pl.embeddings.feature_origin import TITLES, origin_of
from virnucpro_pl.errors import UsageError
from virnucpro_pl.input.orfs import MEAN_OF_RESIDUES, POOLING
from virnucpro_pl.models import download, esm2_files

CODONS = ["GCC", "AAC", "GGC", "CTG", "ACC", "GCA", "CAG"]  # few stops in any frame
TINY = "ESM-2, 3 layers of 32"
REFUSED = "best.ckpt was trained on other embeddings than these: "


@pytest.fixture(scope="module")
def sources(weights_file, plain_dnabert_s, tmp_path_factory):
    """Words of a small run without a classifier, and the name of its contigs."""
    folder = tmp_path_factory.mktemp("sources")
    draw = np.random.default_rng(3)
    records = ["".join(draw.choice(CODONS, n)) for n in (60, 200)]
    contigs = folder / "contigs.fna"
    contigs.write_text("".join(f">c{i}\n{text}\n" for i, text in enumerate(records)))
    dnabert_s = plain_dnabert_s(4).save(folder / "dnabert")
    return [
        *("--config", "virnucpro.yaml", "--data.path", contigs, "--data.num_workers", 0),
        *("--data.tokens_per_batch", 300, "--trainer.precision", 32),
        *("--model.esm2.weights", weights_file, "--model.dnabert_s.weights", dnabert_s),
        *("--writer.commit_seconds", 0),
    ]


@pytest.fixture
def embedded(sources, run_main, tmp_path):
    """Both embedding files of such a run."""
    words = ("--model.classifier", "random", "--writer.save_embeddings", "true")
    ended = run_main(*sources, *words, "--writer.path", "embedded")
    assert ended.code == 0, ended.log
    return tmp_path / "embedded"


@pytest.fixture
def trained(embedded, seeded_classifier, tmp_path):
    """Write a checkpoint, trained on those embeddings but for some changes: `esm2={"layer": 5}`."""

    def save(**changes):
        known = {name: origin_of(EmbeddingFile(embedded / f"{name}.h5")) for name in TITLES}
        for name, change in changes.items():
            known[name] |= change
            known[name] = {key: value for key, value in known[name].items() if value is not None}
        state = seeded_classifier(48 + 32, 8)
        content = {f"classifier.{name}": tensor for name, tensor in state.items()}
        torch.save({"state_dict": content, "embedders": known}, tmp_path / "best.ckpt")

    return save


@pytest.fixture
def call(sources, embedded, run_main):
    """Call with that checkpoint, in one pass or from the embeddings."""

    def run(config, *more):
        words = sources
        if config == "classify.yaml":
            files = ("--data.dnabert_s", embedded / "dnabert_s.h5", "--data.esm2")
            words = (*("--config", config), *files, embedded / "esm2.h5", "--data.num_workers", 0)
        fixed = ("--model.classifier", "best.ckpt", "--writer.path", "calls")
        return run_main(*words, *fixed, *more)

    return run


BOTH = pytest.mark.parametrize("config", ["virnucpro.yaml", "classify.yaml"])


@BOTH
def test_same_embedders_are_taken_without_a_word(trained, call, config):
    trained()
    ended = call(config)
    assert ended.code == 0, ended.log
    assert "trained on" not in ended.log


@BOTH
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"esm2": {"model": "esm2_t33_650M_UR50D", "weights_sha256": "ab", "layer": "33"}},
            f"model of ESM-2 was esm2_t33_650M_UR50D and is {TINY}; layer of ESM-2 was 33 and is 3",
        ),
        ({"dnabert_s": {"layer": "2"}}, "layer of DNABERT-S (DNABERT-S, 3 layers of 48) was 2 and"),
        ({"dnabert_s": {"pooling": "[CLS]"}}, "was [CLS] and is mean of all tokens"),
        ({"esm2": {"weights_sha256": "ab"}}, f"SHA-256 of the weights of ESM-2 ({TINY}) was ab"),
        ({"dnabert_s": {"tokenizer_sha256": "ab"}}, "SHA-256 of the tokenizer of DNABERT-S"),
    ],
    ids=["name", "layer", "pooling", "weights", "tokenizer"],
)
def test_others_exit_2_by_name_before_weights_are_loaded(
    trained, call, tmp_path, config, changes, message
):
    trained(**changes)
    ended = call(config)
    assert ended.code == 2, ended.log
    [line] = [line for line in ended.log.splitlines() if REFUSED in line]
    assert message in line
    assert "another --model.classifier" in line
    assert "Loaded" not in ended.log
    assert "Traceback" not in ended.log
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("calls")]


def test_another_published_name_is_refused_before_any_weights_are_found(
    sources, trained, run_main, monkeypatch
):
    def never(*arguments):
        raise AssertionError("weights were looked for")

    trained(esm2={"model": "esm2_t33_650M_UR50D", "layer": "33"})
    monkeypatch.setattr(esm2_files, "find_weights", never)
    words = ("--model.classifier", "best.ckpt", "--writer.path", "calls")
    ended = run_main(*sources[:4], *words)  # the published weights
    assert ended.code == 2, ended.log
    assert "model of ESM-2 was esm2_t33_650M_UR50D and is esm2_t36_3B_UR50D" in ended.log
    assert "--model.esm2.name esm2_t33_650M_UR50D" in ended.log


@pytest.mark.parametrize("model", ["esm2", "dnabert_s"])
def test_large_weights_are_refused_once_they_are_hashed(
    trained, call, monkeypatch, tmp_path, model
):
    monkeypatch.setattr(download, "_SMALL", 0)
    trained(**{model: {"weights_sha256": "ab"}})
    ended = call("virnucpro.yaml")
    assert ended.code == 2, ended.log
    assert ended.log.count(REFUSED) == 1
    assert f"SHA-256 of the weights of {TITLES[model]}" in ended.log
    assert "Loaded" in ended.log
    assert "Traceback" not in ended.log
    assert not (tmp_path / "calls").exists()
    ended = call("virnucpro.yaml")  # whatever is left is no continuation
    assert ended.code == 2, ended.log
    assert not (tmp_path / "calls").exists()


def test_hash_that_comes_after_the_last_row_is_waited_for(trained, call, monkeypatch, tmp_path):
    def slow(files, compute=download._sha256):
        time.sleep(3)
        return compute(files)

    monkeypatch.setattr(download, "_SMALL", 0)
    monkeypatch.setattr(download, "_sha256", slow)
    trained(esm2={"weights_sha256": "ab"})
    ended = call("virnucpro.yaml")
    assert ended.code == 2, ended.log
    assert ended.log.count(REFUSED) == 1
    assert not (tmp_path / "calls").exists()


@pytest.mark.parametrize("hashed", ["before the first row", "after the last row"])
def test_without_a_writer_the_hash_is_checked_as_soon_as_it_is_there(
    sources, trained, monkeypatch, hashed
):
    compute, last = download._sha256, threading.Event()

    class Watched(VirNucPro):
        steps = 0

        def on_predict_start(self):
            super().on_predict_start()
            if hashed == "before the first row":
                last.set()
                assert [embedder.weights_sha256 for embedder in self.embedders]

        def predict_step(self, batch, batch_idx=0):
            result = super().predict_step(batch, batch_idx)
            Watched.steps += 1
            return result

        def on_predict_end(self):
            last.set()
            super().on_predict_end()

    def held(files):
        assert last.wait(60)
        return compute(files)

    monkeypatch.setattr(download, "_SMALL", 0)
    monkeypatch.setattr(download, "_sha256", held)
    monkeypatch.setattr("virnucpro_pl.predict.classifying_module.hash_classifier", str)
    trained(esm2={"weights_sha256": "ab"})
    given = dict(zip(sources[::2], sources[1::2], strict=True))
    esm2 = ESM2Embedder(weights=str(given["--model.esm2.weights"]))
    dnabert_s = DNABERTSEmbedder(weights=str(given["--model.dnabert_s.weights"]))
    model = Watched(esm2, dnabert_s, "best.ckpt", enable_fp16=False)
    data = ContigDataModule(given["--data.path"], num_workers=0, tokens_per_batch=300)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    with pytest.raises(UsageError, match=REFUSED):
        trainer.predict(model, data)
    assert bool(Watched.steps) == (hashed == "after the last row")


@BOTH
def test_what_one_side_does_not_know_is_told_once_and_taken(trained, call, embedded, config):
    trained(dnabert_s={"layer": None}, esm2={"model": None, "weights_sha256": None})
    unknown = "layer of DNABERT-S, model of ESM-2, SHA-256 of the weights of ESM-2"
    if config == "classify.yaml":
        with h5py.File(embedded / "esm2.h5", "r+") as file:
            del file.attrs["pooling"]
        unknown += ", pooling of ESM-2"
    ended = call(config)
    assert ended.code == 0, ended.log
    said = "best.ckpt was not compared with what it was trained on, where either is not known: "
    assert ended.log.count(said) == 1
    assert f"{said}{unknown}\n" in ended.log


@BOTH
def test_checkpoint_of_before_is_taken(trained, call, tmp_path, config):
    trained(esm2={"model": "other"})
    content = torch.load(tmp_path / "best.ckpt", weights_only=True)
    del content["embedders"]
    torch.save(content, tmp_path / "best.ckpt")
    ended = call(config)
    assert ended.code == 0, ended.log
    assert "trained on" not in ended.log


@BOTH
def test_other_precision_is_warned_of_once(trained, call, config):
    trained(esm2={"precision": "16-mixed"})
    ended = call(config)
    assert ended.code == 0, ended.log
    [line] = [line for line in ended.log.splitlines() if "was trained on" in line]
    assert "WARNING" in line
    assert "ESM-2 embeddings in 16-mixed, and these are in 32-true" in line


@BOTH
def test_pooling_of_all_residues_is_the_same_up_to_1024(trained, call, config):
    trained(esm2={"pooling": MEAN_OF_RESIDUES})
    ended = call(config)
    assert ended.code == 0, ended.log
    assert "trained on" not in ended.log


def test_pooling_that_differs_for_a_long_protein_is_refused(trained, call, embedded, tmp_path):
    trained(esm2={"pooling": MEAN_OF_RESIDUES})
    gene = tmp_path / "gene.fna"
    gene.write_text(">g\n" + "GCC" * 1030 + "\n")
    message = f"pooling of ESM-2 ({TINY}) was {MEAN_OF_RESIDUES} and is {POOLING}"
    words = ("--data.path", gene, "--data.length", 4000)
    ended = call("virnucpro.yaml", *words)
    assert ended.code == 2, ended.log
    assert message in ended.log
    assert "Loaded" not in ended.log
    ended = call("virnucpro.yaml", *words, "--data.max_length", 1024)
    assert ended.code == 0, ended.log
    shutil.rmtree(tmp_path / "calls")
    for name, letters in (("dnabert_s", 3075), ("esm2", 1025)):
        with h5py.File(embedded / f"{name}.h5", "r+") as file:
            file["lengths"][0] = letters
    ended = call("classify.yaml")
    assert ended.code == 2, ended.log
    assert message in ended.log


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        ("virnucpro.yaml", {"esm2": {"layer": "2"}}, "layer of ESM-2"),
        ("virnucpro.yaml", {"esm2": {"model": "other"}}, "model of ESM-2 was other and is"),
        ("classify.yaml", {"esm2": {"layer": "2"}}, "layer of ESM-2"),
        ("virnucpro.yaml", {"esm2": {"weights_sha256": "ab"}}, "SHA-256 of the weights of ESM-2"),
    ],
    ids=["layer", "name", "classify", "late"],
)
def test_every_rank_ends_with_the_same_error(
    start, sources, trained, embedded, tmp_path, weights_file, config, changes, message, ranks
):
    trained(**changes)
    words = list(sources)
    late = "weights_sha256" in changes["esm2"]
    if late:  # too large a file to be hashed while all wait
        content = torch.load(weights_file, weights_only=False)
        content["filler"] = torch.zeros(1 << 19)
        torch.save(content, tmp_path / "large.pt")
        words[words.index("--model.esm2.weights") + 1] = tmp_path / "large.pt"
    if config == "classify.yaml":
        files = ("--data.dnabert_s", embedded / "dnabert_s.h5", "--data.esm2", embedded / "esm2.h5")
        words = ["--config", config, *files]
    many = ("--trainer.devices", ranks, "--trainer.strategy", "ddp") if ranks > 1 else ()
    command = start(
        *("predict", *words, "--model.classifier", "best.ckpt", "--writer.path", "calls"),
        *("--trainer.accelerator", "cpu", *many),
    )
    ended = command.wait(90)
    command.assert_nothing_left()
    assert ended.code == 2, ended.log
    assert ended.log.count(REFUSED) == 1
    assert message in ended.log
    assert "Traceback" not in ended.log
    assert ("Loaded" in ended.log) == late
    assert not (tmp_path / "calls").exists()
