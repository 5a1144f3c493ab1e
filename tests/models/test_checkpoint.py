import argparse
import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from safetensors.torch import save_file
from torch import nn

from virnucpro_pl.errors import WeightsError
from virnucpro_pl.models.checkpoint import read_checkpoint, read_torch_file

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 31408014\n"


class Malicious:
    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_read_malicious_file_runs_nothing(tmp_path, zipped):
    mark, path = tmp_path / "owned", tmp_path / "w.pt"
    content = {"model": Malicious(mark), "cfg": {"model": None}}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"wants to run \S*mkdir"):
        read_checkpoint(path)
    assert not mark.exists()


def test_read_plain_pickle_runs_nothing(tmp_path):
    mark, path = tmp_path / "owned", tmp_path / "w.bin"
    path.write_bytes(pickle.dumps(Malicious(mark)))
    with pytest.raises(WeightsError):
        read_torch_file(path)
    assert not mark.exists()


def test_read_malicious_bin_in_folder_runs_nothing(tmp_path):
    mark = tmp_path / "owned"
    (tmp_path / "config.json").write_text("{}")
    torch.save({"a": Malicious(mark)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="wants to run"):
        read_checkpoint(tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_read_truncated_or_flipped_file_raises(weights_file, tmp_path, zipped):
    whole = tmp_path / "whole.pt"
    content = torch.load(weights_file, weights_only=False)
    torch.save(content, whole, _use_new_zipfile_serialization=zipped)
    data, path = whole.read_bytes(), tmp_path / "w.pt"
    for stop in range(0, len(data) - 1, len(data) // 23):
        path.write_bytes(data[:stop])
        with pytest.raises(WeightsError, match=path.name):
            read_checkpoint(path)
    for at in range(0, 3000, 7):  # the pickle lies at the beginning
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
        try:
            read_checkpoint(path)
        except WeightsError:
            continue


def test_read_compressed_zip_file_gives_the_numbers_in_it(tmp_path):
    tensor, path = torch.arange(5000) % 7, tmp_path / "w.pt"
    torch.save({"a": tensor}, tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as whole, zipfile.ZipFile(path, "w", 8) as file:
        for name in whole.namelist():
            file.writestr(name, whole.read(name))
    assert torch.equal(read_checkpoint(path).tensors["a"], tensor)


def test_read_zip_file_with_a_damaged_head_of_a_member_raises(tmp_path):
    path = tmp_path / "w.pt"
    torch.save({"a": torch.arange(5000)}, path)
    with zipfile.ZipFile(path) as file:
        at = next(info.header_offset for info in file.infolist() if "/data/" in info.filename)
    data = bytearray(path.read_bytes())
    data[at + 26] ^= 8  # of the length of its name, behind which its own bytes begin
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=r"w\.pt cannot be read"):
        read_checkpoint(path)


def test_read_missing_file_raises(tmp_path):
    with pytest.raises(WeightsError, match="no such weights file"):
        read_torch_file(tmp_path / "absent.pt")


@pytest.mark.parametrize(
    "content",
    [{}, [1, 2], {"model": 3, "cfg": {}}, {"cfg": {"model": 1}}, {0: torch.ones(1)},
     {"model": {("a",): torch.ones(1)}}],
)  # fmt: skip
def test_read_other_content_raises(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"not a (fair-esm ESM-2|weights) file"):
        read_checkpoint(tmp_path / "w.pt")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(10**6, 10**6),  # four terabytes of four bytes
        torch.ones(2, 2).to_sparse(),
        torch.ones(2, device="meta"),
        torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    ],
    ids=["expanded", "sparse", "meta", "quantised"],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_read_tensor_whose_numbers_are_not_in_the_file_raises(tmp_path, tensor, zipped):
    path = tmp_path / "w.pt"
    content = {"a": torch.ones(1), "b": tensor}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"no plain tensors are b"):
        read_checkpoint(path)


def test_read_file_is_mapped_not_copied(weights_file):
    tensors = read_checkpoint(weights_file).tensors
    storages = {t.untyped_storage().data_ptr() for t in tensors.values()}
    first, last = min(storages), max(storages)
    assert last - first < weights_file.stat().st_size  # all lie in one mapping of the file


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "neither model.safetensors nor pytorch_model.bin"),
        ({"model.safetensors": None, "config.json": ""}, "config.json cannot be read"),
        ({"model.safetensors": None}, "config.json cannot be read"),
        ({"model.safetensors": "junk", "config.json": "{}"}, "model.safetensors is damaged"),
        ({"pytorch_model.bin": "junk", "config.json": "{}"}, "pytorch_model.bin"),
        ({"model-00001-of-00002.safetensors": ""}, "no model.safetensors.index.json"),
        ({"model.safetensors.index.json": "{"}, "index.json"),
        ({"model.safetensors.index.json": "{}"}, "index.json"),
        ({"model.safetensors.index.json": '{"weight_map": {}}'}, "has no weight_map"),
        ({"model.safetensors.index.json": "[" * 100_000}, r"index\.json cannot be read"),
        ({"model.safetensors": None, "config.json": '{"a":' * 100_000}, r"g\.json cannot be read"),
        (
            {"model.safetensors.index.json": '{"weight_map": {"a": "model-1.safetensors"}}'},
            "lacks model-1.safetensors",
        ),
        ({"model.safetensors": None, "config.json": "[]"}, "no JSON object"),
    ],
)
def test_read_folder_damaged_raises(tmp_path, files, message):
    for name, text in files.items():
        if text is None:
            save_file({"a": torch.ones(1)}, tmp_path / name)
        else:
            (tmp_path / name).write_text(text)
    with pytest.raises(WeightsError, match=message):
        read_checkpoint(tmp_path)


def test_read_folder_hashes_weights_and_config(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("not part of it")
    names = [file.name for file in read_checkpoint(tmp_path).files]
    assert names == ["config.json", "model.safetensors"]


def test_index_of_shards_is_followed(tmp_path):
    for name in ("a", "b"):
        save_file({name: torch.ones(1)}, tmp_path / f"model-{name}.safetensors")
    index = {"weight_map": {name: f"model-{name}.safetensors" for name in "ab"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text("{}")
    assert sorted(read_checkpoint(tmp_path).tensors) == ["a", "b"]


def test_read_kind_is_told_by_content_not_by_name(weights_file, tmp_path):
    tensors = {"a": torch.ones(2)}
    save_file(tensors, tmp_path / "one.bin")
    torch.save(tensors, tmp_path / "two.tensors")
    torch.save(tensors, tmp_path / "three", _use_new_zipfile_serialization=False)
    for name in ("one.bin", "two.tensors", "three"):
        checkpoint = read_checkpoint(tmp_path / name)
        assert torch.equal(checkpoint.tensors["a"], torch.ones(2))
        assert checkpoint.config is None
        assert checkpoint.files == [tmp_path / name]
    (tmp_path / "four.ckpt").write_bytes(weights_file.read_bytes())
    (tmp_path / "config.json").write_text("{}")
    assert read_checkpoint(tmp_path / "four.ckpt").config.encoder_layers == 3  # its own, not {}
    assert read_checkpoint(tmp_path / "four.ckpt").files == [tmp_path / "four.ckpt"]


@pytest.mark.parametrize("content", ["{}", "[1]", "// of another program", '{"model_type": "esm"}'])
def test_read_config_beside_a_file_is_used_if_it_names_a_model(tmp_path, content):
    torch.save({"a": torch.ones(2)}, tmp_path / "w.pt")
    (tmp_path / "config.json").write_text(content)
    checkpoint = read_checkpoint(tmp_path / "w.pt")
    is_used = "model_type" in content
    assert checkpoint.config == ({"model_type": "esm"} if is_used else None)
    assert len(checkpoint.files) == 1 + is_used
    assert ("names no model_type and is not used" in checkpoint.no_config) is not is_used


@pytest.mark.parametrize("name", ["state_dict", "model_state_dict", "model"])
def test_read_training_checkpoint_gives_its_tensors(tmp_path, name):
    content = {name: {"a": torch.ones(2)}, "optimizer": {"lr": 0.1}, "epoch": 3}
    torch.save(content, tmp_path / "w.pt")
    assert list(read_checkpoint(tmp_path / "w.pt").tensors) == ["a"]


class Mine:
    """A class that no allow-list names."""


class Tuned(LightningModule):
    def __init__(self, folder=Path("runs"), options=None):
        super().__init__()
        self.save_hyperparameters()
        self.head = nn.Linear(2, 1)


def lightning_checkpoint(module, path):
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return path


def test_read_lightning_checkpoint_with_hyperparameters(tmp_path):
    path = lightning_checkpoint(Tuned(options=argparse.Namespace(a={1, 2})), tmp_path / "m.ckpt")
    assert sorted(read_checkpoint(path).tensors) == ["head.bias", "head.weight"]


def test_read_lightning_checkpoint_with_a_class_of_its_own_names_it(tmp_path):
    path = lightning_checkpoint(Tuned(options=Mine()), tmp_path / "m.ckpt")
    with pytest.raises(WeightsError, match=r"m\.ckpt .*wants to run \S+\.Mine, .*state_dict"):
        read_checkpoint(path)


def test_read_same_tensor_in_two_shards_raises(tmp_path):
    for name in ("a", "b"):
        save_file({"same": torch.ones(1)}, tmp_path / f"model-{name}.safetensors")
    index = {"weight_map": {name: f"model-{name}.safetensors" for name in "ab"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match="several of its files have same"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "pytorch_model.bin", "config.json", "model.safetensors.index.json"],
)
def test_read_git_lfs_pointer_is_called_one(tmp_path, name):
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    if name != "config.json":
        (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(WeightsError, match=rf"{name} is a Git LFS pointer, .*`git lfs pull`"):
        read_checkpoint(tmp_path)
