"""The classifier from each kind of file, against its formulas, and what is refused."""

import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from virnucpro_pl import DNABERTSEmbedder, ESM2Embedder, VirNucPro, VirusClassifier
from virnucpro_pl.calibration import Calibration
from virnucpro_pl.errors import UsageError, WeightsError
from virnucpro_pl.models import classifier as classifiers
from virnucpro_pl.models.classifier import (
    MLPClassifier,
    check_chunk_length,
    hash_classifier,
    load_classifier,
)
from virnucpro_pl.models.weights import assign_random, on_meta

FEATURES, HIDDEN = 40, 12


@pytest.fixture(scope="module")
def state(seeded_classifier):
    return seeded_classifier(FEATURES, HIDDEN)


@pytest.fixture(scope="module")
def features():
    return torch.randn(9, FEATURES, generator=torch.Generator().manual_seed(1))


def save_state(state, path):
    torch.save(state, path)
    return str(path)


def lightning_checkpoint(module, path):
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return str(path)


def caller(state):
    """Make a VirusClassifier with these weights."""
    module = VirusClassifier("random")
    module.classifier = MLPClassifier(FEATURES, HIDDEN)
    module.classifier.load_state_dict(state)
    return module


@pytest.mark.parametrize("kind", ["module", "state dict", "checkpoint", "larger one"])
def test_load_classifier_each_kind_of_file_gives_the_formulas_numbers(
    state, features, save_classifier, plain_probabilities, tmp_path, kind
):
    path = tmp_path / "classifier.pth"
    if kind == "module":
        save_classifier(path, FEATURES, HIDDEN)
    elif kind == "state dict":
        save_state(state, path)
    elif kind == "checkpoint":
        lightning_checkpoint(caller(state), path)
    else:
        whole = VirNucPro(ESM2Embedder(), DNABERTSEmbedder(weights="random"), "random")
        whole.classifier = caller(state).classifier
        whole.esm2.encoder = nn.Linear(2, 2)
        lightning_checkpoint(whole, path)
    classifier = load_classifier(str(path), FEATURES)
    assert not classifier.training
    assert not any(p.requires_grad for p in classifier.parameters())
    got = classifier.probabilities(features)
    assert got.dtype == torch.float32
    assert np.abs(got.numpy() - plain_probabilities(state, features)).max() < 1e-6


def test_load_classifier_half_stored_is_cast_up(state, features, plain_probabilities, tmp_path):
    half = {name: t.half() if t.is_floating_point() else t for name, t in state.items()}
    classifier = load_classifier(save_state(half, tmp_path / "c.pt"))
    assert {p.dtype for p in classifier.parameters()} == {torch.float32}
    expected = plain_probabilities(half, features)
    assert np.abs(classifier.probabilities(features).numpy() - expected).max() < 1e-6


def test_probabilities_under_autocast_are_fp32(state, features, tmp_path):
    classifier = load_classifier(save_state(state, tmp_path / "c.pt"))
    expected = classifier.probabilities(features)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(classifier.probabilities(features), expected)
        assert not torch.equal(classifier(features).softmax(1), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_classifier_within_a_cast_model_stays_fp32(state, features, tmp_path, dtype):
    source = save_state(state, tmp_path / "c.pt")
    expected = load_classifier(source).probabilities(features)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # as Lightning does while it builds a model
    try:
        model = nn.ModuleDict({"classifier": load_classifier(source), "other": nn.Linear(2, 2)})
        random = load_classifier("random", FEATURES)
    finally:
        torch.set_default_dtype(before)
    model.to(dtype)
    assert model["other"].weight.dtype == dtype
    assert torch.equal(model["classifier"].probabilities(features), expected)
    again = load_classifier("random", FEATURES)
    assert torch.equal(random.probabilities(features), again.probabilities(features))


def test_load_classifier_other_width_names_both_numbers(state, tmp_path):
    source = save_state(state, tmp_path / "c.pt")
    with pytest.raises(WeightsError, match=r"c\.pt takes 40 features, .* give 3328"):
        load_classifier(source, 3328)


class Evil:
    """Unpickled, it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("where", ["whole file", "within the module", "old format"])
def test_load_classifier_malicious_pickle_runs_nothing_and_names_it(
    save_classifier, tmp_path, where
):
    bait, path = tmp_path / "pwned", tmp_path / "c.pth"
    if where == "within the module":
        save_classifier(path, FEATURES, HIDDEN, edit=lambda m: setattr(m, "x", Evil(bait)))
    elif where == "whole file":
        torch.save({"hidden_layer.weight": Evil(bait)}, path)
    else:
        path.write_bytes(pickle.dumps(Evil(bait), 2))
    with pytest.raises(WeightsError, match=r"c\.pth.*(posix\.system|damaged)") as caught:
        load_classifier(str(path))
    assert not bait.exists()
    if where != "old format":
        assert "posix.system" in str(caught.value)


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda s: [1, 2], "it holds a list"),
        (lambda s: {}, "it has nothing"),
        (lambda s: {"a": torch.ones(2)}, "it has a"),
        (lambda s: {**s, "note": "text"}, "no tensors are note"),
        (lambda s: {**s, "bn1.weight": torch.ones(3, device="meta")}, "no tensors are bn1.weight"),
        (lambda s: {**s, "bn1.weight": torch.ones(HIDDEN).to_sparse()}, "no tensors are"),
        (lambda s: {**s, "bn1.weight": torch.full((HIDDEN,), torch.nan)}, "finite in bn1.weight"),
        (
            lambda s: {**s, "hidden_layer.weight": torch.zeros(1).expand(10**6, 10**6)},
            "no tensors are hidden_layer.weight",
        ),
        (lambda s: {"state_dict": s, "chunk_length": True}, "chunk_length is no whole number"),
        (lambda s: {"state_dict": s, "chunk_length": -500}, "chunk_length is no whole number"),
        (lambda s: {**s, "extra": torch.ones(1)}, 'Unexpected key.*"extra"'),
        (lambda s: without(s, "bn1.running_var"), 'Missing key.*"bn1.running_var"'),
        (lambda s: {**s, "output_layer.weight": torch.ones(3, HIDDEN)}, "output_layer.weight"),
        (lambda s: {**s, "hidden_layer.weight": torch.ones(3)}, "is no classifier"),
        (lambda s: {"state_dict": {"classifier.a": torch.ones(2)}}, "it has a"),
    ],
)
def test_load_classifier_what_is_none_raises_weights_error(state, tmp_path, content, message):
    source = save_state(content(state), tmp_path / "c.pt")
    with pytest.raises(WeightsError, match=rf"(?s)c\.pt.*{message}"):
        load_classifier(source)


@pytest.mark.parametrize("attribute", ["_modules", "_parameters", "_buffers"])
def test_load_classifier_module_without_its_tables_raises_weights_error(
    save_classifier, tmp_path, attribute
):
    def strip(module):
        delattr(module if attribute == "_modules" else module.bn1, attribute)

    path = save_classifier(tmp_path / "c.pth", FEATURES, HIDDEN, edit=strip)
    with pytest.raises(WeightsError, match="pickled module lacks"):
        load_classifier(str(path))


def test_load_classifier_flipped_number_raises_weights_error(state, tmp_path):
    path = tmp_path / "c.pth"
    torch.save(state, path)
    weight = state["hidden_layer.weight"].numpy().tobytes()
    data = bytearray(path.read_bytes())
    data[data.index(weight) + 100] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=r"c\.pth cannot be read.*checksum of \S+ is another"):
        load_classifier(str(path))


@pytest.mark.parametrize("content", [b"", b"PK\3\4 cut off", b">a\nACGT\n"])
def test_load_classifier_junk_raises_weights_error(tmp_path, content):
    path = tmp_path / "c.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"c\.pth"):
        load_classifier(str(path))


@pytest.mark.parametrize(
    ("stored", "known"), [({}, None), ({"chunk_length": None}, None), ({"chunk_length": 300}, 300)]
)
def test_load_classifier_knows_the_chunks_of_a_checkpoint(state, tmp_path, stored, known):
    torch.save({"state_dict": state, **stored}, tmp_path / "c.ckpt")
    assert load_classifier(str(tmp_path / "c.ckpt")).chunk_length == known


def test_load_classifier_chunks_that_are_no_number_raise(state, tmp_path):
    torch.save({"state_dict": state, "chunk_length": "300"}, tmp_path / "c.ckpt")
    with pytest.raises(WeightsError, match=r"c\.ckpt is no classifier: its chunk_length is no"):
        load_classifier(str(tmp_path / "c.ckpt"))


ORIGINS = {"dnabert_s": {"model": "DNABERT-S"}, "esm2": {"model": "m", "layer": "33"}}


@pytest.mark.parametrize(
    ("stored", "known"),
    [
        ({}, None),
        ({"embedders": None}, None),
        ({"embedders": {"dnabert_s": {}, "esm2": {}}}, {"dnabert_s": {}, "esm2": {}}),
        ({"embedders": ORIGINS}, ORIGINS),
    ],
)
def test_load_classifier_knows_the_embedders_of_a_checkpoint(state, tmp_path, stored, known):
    torch.save({"state_dict": state, **stored}, tmp_path / "c.ckpt")
    assert load_classifier(str(tmp_path / "c.ckpt")).embedders == known


def test_load_classifier_published_file_knows_no_embedders(save_classifier, tmp_path):
    path = save_classifier(tmp_path / "500_model.pth", 8, 4)
    assert load_classifier(str(path)).embedders is None


@pytest.mark.parametrize(
    "stored",
    ["esm2", ["esm2"], {"esm2": "m"}, {"esm2": {"layer": 33}}, {"esm2": {1: "m"}}, {2: {}}],
)
def test_load_classifier_embedders_that_are_no_texts_raise(state, tmp_path, stored):
    torch.save({"state_dict": state, "embedders": stored}, tmp_path / "c.ckpt")
    with pytest.raises(WeightsError, match=r"c\.ckpt is no classifier: its embedders "):
        load_classifier(str(tmp_path / "c.ckpt"))


@pytest.mark.parametrize(
    ("known", "source", "given", "refused", "warned"),
    [
        (300, "best.ckpt", 300, False, False),
        (300, "best.ckpt", 500, True, False),
        (300, "of/500_model.pth", 300, False, False),  # what the file knows counts
        (None, "random", 500, False, False),
        (None, "of/300_models/best.ckpt", 500, False, False),
        (None, "of/300_model.pth", 500, False, True),
        (None, "of/my_300_model_2.pth", 500, False, True),
        (None, "of/500_model.pth", 500, False, False),
    ],
)
def test_chunks_of_another_length_are_refused_or_warned_of(
    caplog, known, source, given, refused, warned
):
    classifier = MLPClassifier(2, 2)
    classifier.chunk_length = known
    if refused:
        message = f"{source} was trained on chunks of 300 .* of 500: .*--data.length 300"
        with pytest.raises(UsageError, match=message):
            check_chunk_length(classifier, source, given)
    else:
        check_chunk_length(classifier, source, given)
    assert bool(caplog.messages) == warned
    if warned:
        assert f"{source} is for chunks of 300 bases, by its name" in caplog.text
        assert "--data.length 300" in caplog.text


def test_load_classifier_missing_file_raises_weights_error(tmp_path):
    for path in (tmp_path / "c.pth", tmp_path):
        with pytest.raises(WeightsError, match=r"no such classifier; .*Li-Jing-1997/VirNucPro"):
            load_classifier(str(path))
    with pytest.raises(WeightsError, match=r"c\.pth cannot be read"):
        hash_classifier(str(tmp_path / "c.pth"))


def test_hash_of_a_random_classifier_names_the_seed_of_its_weights():
    kind, name, seed = hash_classifier("random").split(":")
    assert (kind, name) == ("random", "classifier")
    same = on_meta(lambda: MLPClassifier(FEATURES))
    assign_random(same, device=torch.device("cpu"), matrix_dtype=torch.float32, seed=int(seed))
    found = load_classifier("random", FEATURES)
    assert torch.equal(found.hidden_layer.weight, same.hidden_layer.weight)


def test_load_classifier_git_lfs_pointer_is_called_one(tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 6852122\n"
    (tmp_path / "500_model.pth").write_text(pointer)
    with pytest.raises(WeightsError, match=r"500_model\.pth is a Git LFS pointer, .*git lfs pull"):
        load_classifier(str(tmp_path / "500_model.pth"))


def test_published_class_name_leaves_no_trace_in_main(save_classifier, tmp_path):
    load_classifier(str(save_classifier(tmp_path / "c.pth", FEATURES, HIDDEN)))
    assert not hasattr(sys.modules["__main__"], "MLPClassifier")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a device that is full")
def test_checkpoint_on_a_full_disk_is_an_error_of_the_system(state):
    calibration = Calibration(1.0, 0.0, 0.0, 1.0, 0.5, 0.5)
    with pytest.raises(OSError, match="No space left"):
        classifiers.save_classifier(
            Path("/dev/full"),
            state,
            calibration=calibration,
            chunk_length=500,
            embedders={},
            options={},
            epoch=0,
        )
