import json

import h5py
import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from virnucpro_pl import (
    ESM2Embedder,
    FailureLog,
    HDF5Writer,
    NumericalInstabilityError,
    PrecisionFromEnv,
    SequenceDataModule,
)
from virnucpro_pl.errors import UsageError, WeightsError


def make_trainer(*callbacks, **options):
    return Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=list(callbacks), **options,
    )  # fmt: skip


def make_data(path, **options):
    return SequenceDataModule(path, **{"tokens_per_batch": 60, "num_workers": 0, **options})


class Watched(ESM2Embedder):
    """Notes what each batch and each layer saw."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.seen = []

    def configure_model(self):
        super().configure_model()
        for module in self.encoder.modules():
            module.register_forward_hook(self.note)

    def note(self, module, inputs, output):
        for tensor in output if isinstance(output, tuple) else (output,):
            assert isinstance(tensor, torch.Tensor)
            self.seen.append((len(self.batches), tensor.dtype, torch.is_autocast_enabled("cpu")))

    def predict_step(self, batch, batch_idx=0):
        self.batches.append(len(batch.rows))
        hidden = self(batch)
        self.hidden.append((hidden.dtype, torch.is_autocast_enabled("cpu")))
        return super().predict_step(batch, batch_idx)

    def on_predict_start(self):
        super().on_predict_start()
        self.batches, self.hidden = [], []


@pytest.fixture
def fasta(random_proteins, write_fasta, tmp_path):
    return write_fasta(tmp_path / "in.faa", random_proteins([20, 35, 7, 50, 3, 41, 12]))


def run(weights, fasta, tmp_path, trainer_options=None, **options):
    model = Watched(weights=str(weights), **options)
    output = tmp_path / "out.h5"
    trainer = make_trainer(HDF5Writer(output), **(trainer_options or {}))
    trainer.predict(model, make_data(fasta))
    assert len(model.batches) > 2
    with h5py.File(output) as file:
        return model, trainer, file["embeddings"][()]


def assert_single_everywhere(model, trainer, vectors):
    assert trainer.precision == "32-true"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert {batch for batch, _, _ in model.seen} == set(range(1, len(model.batches) + 1))
    assert {(dtype, autocast) for _, dtype, autocast in model.seen} == {(torch.float32, False)}
    assert set(model.hidden) == {(torch.float32, False)}  # the first batch and the last
    assert vectors.dtype == np.float32


@pytest.mark.parametrize("half", [False, True], ids=["single", "half"])
def test_predict_switch_on_is_single_everywhere(
    reference, save_published, fair_esm_vectors, fasta, tmp_path, monkeypatch, half
):
    monkeypatch.setenv("VIRNUCPRO_DISABLE_FP16", "1")
    path = save_published(reference.state_dict(), tmp_path / "w.pt", half=half)
    model, trainer, vectors = run(path, fasta, tmp_path, {"precision": "16-mixed"})
    assert_single_everywhere(model, trainer, vectors)
    if not half:
        sequences = fasta.read_text().split("\n")[1::2]
        np.testing.assert_allclose(vectors, fair_esm_vectors(sequences), rtol=0, atol=1e-5)


def test_predict_enable_fp16_false_is_single_everywhere(weights_file, fasta, tmp_path):
    options = {"precision": "16-mixed"}
    outcome = run(weights_file, fasta, tmp_path, options, enable_fp16=False)
    assert_single_everywhere(*outcome)


@pytest.mark.usefixtures("bf16_units")
def test_predict_enable_fp16_true_runs_under_autocast(weights_file, fasta, tmp_path):
    model, trainer, vectors = run(weights_file, fasta, tmp_path, enable_fp16=True)
    assert trainer.precision == "bf16-mixed"
    assert all(autocast for _, _, autocast in model.seen)
    assert (torch.bfloat16, True) in {(dtype, autocast) for _, dtype, autocast in model.seen}
    assert vectors.dtype == np.float32


@pytest.mark.usefixtures("bf16_units")
def test_predict_reduced_is_close_to_single(weights_file, fasta, tmp_path, fair_esm_vectors):
    _, _, vectors = run(weights_file, fasta, tmp_path)
    single = fair_esm_vectors(fasta.read_text().split("\n")[1::2])
    ours, theirs = vectors - single.mean(0), single - single.mean(0)
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    assert ((ours * theirs).sum(1) / norms > 0.999).all()


def test_predict_typo_in_switch_raises_before_weights(fasta, tmp_path, monkeypatch):
    monkeypatch.setenv("VIRNUCPRO_DISABLE_FP16", "tru")
    with pytest.raises(UsageError, match="tru"):
        make_trainer().predict(ESM2Embedder(weights=str(fasta)), make_data(fasta))


@pytest.mark.parametrize("layer", [0, 1, 3])
def test_predict_layer_equals_fair_esm(weights_file, fasta, fair_esm_layers, layer):
    model = ESM2Embedder(weights=str(weights_file), layer=layer, enable_fp16=False)
    batches = make_trainer().predict(model, make_data(fasta))
    vectors = torch.cat([batch.vectors for batch in batches])
    for vector, sequence in zip(vectors, fasta.read_text().split("\n")[1::2], strict=True):
        expected = fair_esm_layers(sequence)[layer, 1:-1].mean(0)
        torch.testing.assert_close(vector, expected, rtol=0, atol=1e-5)


def test_model_is_named_by_its_sizes_and_its_weights_by_their_file(
    weights_file, fasta, tmp_path, caplog
):
    caplog.set_level("INFO")
    model = ESM2Embedder(weights=str(weights_file))
    make_trainer(HDF5Writer(tmp_path / "out.h5")).predict(model, make_data(fasta))
    assert "Loaded ESM-2, 3 layers of 32 from tiny.pt in " in caplog.text
    assert "3B" not in caplog.text
    with h5py.File(tmp_path / "out.h5") as file:
        assert file.attrs["model"] == model.name == "ESM-2, 3 layers of 32"
        assert file.attrs["weights"] == "tiny.pt"
    report = json.loads((tmp_path / "out.h5.run.json").read_text())
    assert (report["model"], report["weights"]) == ("ESM-2, 3 layers of 32", "tiny.pt")


def test_random_model_is_the_named_one(fasta, tmp_path, caplog):
    caplog.set_level("INFO")
    model = ESM2Embedder("esm2_t6_8M_UR50D", weights="random")
    make_trainer(HDF5Writer(tmp_path / "out.h5")).predict(model, make_data(fasta))
    assert "Loaded esm2_t6_8M_UR50D from random numbers in " in caplog.text
    with h5py.File(tmp_path / "out.h5") as file:
        assert (file.attrs["model"], file.attrs["weights"]) == ("esm2_t6_8M_UR50D", "random")
        assert file.attrs["weights_sha256"] == "random:esm2_t6_8M_UR50D:0"


def test_name_of_another_model_than_the_weights_raises_before_they_are_loaded(
    weights_file, fasta, tmp_path, monkeypatch
):
    model = ESM2Embedder("esm2_t36_3B_UR50D", weights=str(weights_file))
    monkeypatch.setattr(model, "load_encoder", None)
    with pytest.raises(UsageError, match=r"tiny\.pt is ESM-2, 3 layers of 32, .*esm2_t36_3B_UR50D"):
        make_trainer(HDF5Writer(tmp_path / "out.h5")).predict(model, make_data(fasta))
    assert [file.name for file in tmp_path.iterdir()] == ["in.faa"]


def test_published_file_of_another_model_raises(weights_file, fasta, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    cached = tmp_path / "hub" / "checkpoints" / "esm2_t36_3B_UR50D.pt"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(weights_file.read_bytes())
    with pytest.raises(UsageError, match=r"is ESM-2, 3 layers of 32, .*esm2_t36_3B_UR50D"):
        make_trainer().predict(ESM2Embedder(), make_data(fasta))


@pytest.mark.parametrize("layer", [-1, 4])
def test_predict_layer_beyond_model_raises(weights_file, fasta, layer):
    model = ESM2Embedder(weights=str(weights_file), layer=layer)
    with pytest.raises(UsageError, match=f"layers 0 to 3, not {layer}"):
        make_trainer().predict(model, make_data(fasta))


def test_predict_unstable_sequences_are_named_exactly(poisoned_file, write_fasta, tmp_path):
    fasta = write_fasta(tmp_path / "in.faa", ["ACDE", "WACD", "GH", "KLW", "MNP"])
    writer, model = HDF5Writer(tmp_path / "out.h5"), ESM2Embedder(weights=str(poisoned_file))
    with pytest.raises(NumericalInstabilityError, match=r"Sequences \(2\): p1, p3") as caught:
        make_trainer(writer).predict(model, make_data(fasta))
    assert caught.value.sequence_ids == ["p1", "p3"]
    assert caught.value.nan_count > 0
    line = json.loads((tmp_path / "out.h5.failures.jsonl").read_text())
    assert line["sequence_ids"] == ["p1", "p3"]
    assert (line["rank"], line["status"], line["failed_batch"]) == (0, "numerical_instability", 0)
    assert "VIRNUCPRO_DISABLE_FP16=1" in line["error"]
    assert not (tmp_path / "out.h5").exists()


def test_predict_without_writer_brings_rule_and_log_along(weights_file, fasta):
    trainer = make_trainer()
    batches = trainer.predict(ESM2Embedder(weights=str(weights_file)), make_data(fasta))
    kinds = [type(callback) for callback in trainer.callbacks]
    assert kinds.count(PrecisionFromEnv) == kinds.count(FailureLog) == 1
    assert torch.cat([batch.rows for batch in batches]).tolist() == list(range(7))


def test_predict_own_callbacks_are_kept(weights_file, fasta, tmp_path):
    mine = FailureLog(tmp_path / "mine.jsonl")
    trainer = make_trainer(mine, PrecisionFromEnv())
    trainer.predict(ESM2Embedder(weights=str(weights_file)), make_data(fasta))
    kinds = [type(callback) for callback in trainer.callbacks]
    assert mine in trainer.callbacks
    assert kinds.count(PrecisionFromEnv) == kinds.count(FailureLog) == 1


def test_predict_missing_weights_leave_nothing_behind(fasta, tmp_path):
    model = ESM2Embedder(weights=str(tmp_path / "absent.pt"))
    with pytest.raises(WeightsError, match=r"absent\.pt"):
        make_trainer(HDF5Writer(tmp_path / "out.h5")).predict(model, make_data(fasta))
    assert [file.name for file in tmp_path.iterdir()] == ["in.faa"]


@pytest.mark.parametrize("attention", ["auto", "varlen", "sdpa"])
def test_predict_packing_disabled_uses_sdpa(weights_file, fasta, tmp_path, monkeypatch, attention):
    monkeypatch.setenv("VIRNUCPRO_DISABLE_PACKING", "1")
    model, _, _ = run(weights_file, fasta, tmp_path, attention=attention)
    assert model.attention_used == "sdpa"


@pytest.mark.usefixtures("bf16_units")
def test_same_model_in_another_trainer_follows_its_precision(
    weights_file, fasta, fair_esm_vectors, monkeypatch
):
    model, data = ESM2Embedder(weights=str(weights_file)), make_data(fasta)
    make_trainer().predict(model, data)
    assert model.encoder.layers[0].fc1.weight.dtype == torch.bfloat16
    monkeypatch.setenv("VIRNUCPRO_DISABLE_FP16", "1")
    batches = make_trainer().predict(model, data)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    expected = fair_esm_vectors(fasta.read_text().split("\n")[1::2])
    vectors = torch.cat([batch.vectors for batch in batches]).numpy()
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-5)
    loaded = model.encoder
    make_trainer().predict(model, data)
    assert model.encoder is loaded  # nothing differs: it need not be read again


def test_same_data_after_its_fault_was_mended_are_read(weights_file, fasta):
    model, data = ESM2Embedder(weights=str(weights_file)), make_data(fasta)
    whole = fasta.read_text()
    fasta.write_text(">a\nAC1\n")
    with pytest.raises(UsageError, match="position 3"):
        make_trainer().predict(model, data)
    fasta.write_text(whole)
    assert sum(len(batch.rows) for batch in make_trainer().predict(model, data)) == 7


def test_subclass_of_a_callback_is_not_brought_along_again(weights_file, fasta):
    class Mine(FailureLog):
        pass

    trainer = make_trainer(Mine())
    trainer.predict(ESM2Embedder(weights=str(weights_file)), make_data(fasta))
    assert sum(isinstance(callback, FailureLog) for callback in trainer.callbacks) == 1


def test_unknown_attention_raises_at_once():
    with pytest.raises(UsageError, match="one of auto, triton, varlen, sdpa, not flash"):
        ESM2Embedder(attention="flash")


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "16-true"])
def test_predict_true_precisions_are_close_to_fair_esm(
    weights_file, fasta, fair_esm_vectors, precision
):
    trainer = make_trainer(precision=precision)
    batches = trainer.predict(ESM2Embedder(weights=str(weights_file)), make_data(fasta))
    assert trainer.precision == precision
    vectors = torch.cat([batch.vectors for batch in batches])
    assert vectors.dtype == torch.float32
    expected = fair_esm_vectors(fasta.read_text().split("\n")[1::2])
    most = {"64-true": 1e-5, "bf16-true": 0.2, "16-true": 0.05}[precision]
    np.testing.assert_allclose(vectors.numpy(), expected, rtol=0, atol=most)
