import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from virnucpro_pl.errors import WeightsError
from virnucpro_pl.models.weights import (
    Checkpoint,
    assign,
    assign_random,
    read_fair_esm_file,
    read_folder,
    read_torch_file,
)

CPU = torch.device("cpu")


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
        read_fair_esm_file(path)
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
        read_folder(tmp_path)
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
            read_fair_esm_file(path)
    for at in range(0, 3000, 7):  # the pickle lies at the beginning
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
        try:
            read_fair_esm_file(path)
        except WeightsError:
            continue


def test_read_missing_file_raises(tmp_path):
    with pytest.raises(WeightsError, match="no such weights file"):
        read_torch_file(tmp_path / "absent.pt")


@pytest.mark.parametrize("content", [{}, [1, 2], {"model": 3, "cfg": {}}, {"cfg": {"model": 1}}])
def test_read_other_content_raises(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"not a (fair-esm ESM-2|weights) file"):
        read_fair_esm_file(tmp_path / "w.pt")


def test_read_file_is_mapped_not_copied(weights_file):
    tensors = read_fair_esm_file(weights_file).tensors
    storages = {t.untyped_storage().data_ptr() for t in tensors.values()}
    first, last = min(storages), max(storages)
    assert last - first < weights_file.stat().st_size  # all lie in one mapping of the file


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "neither model.safetensors nor pytorch_model.bin"),
        ({"model.safetensors": "", "config.json": ""}, "config.json cannot be read"),
        ({"model.safetensors": "junk", "config.json": "{}"}, "model.safetensors is damaged"),
        ({"pytorch_model.bin": "junk", "config.json": "{}"}, "pytorch_model.bin"),
        ({"model-00001-of-00002.safetensors": ""}, "no model.safetensors.index.json"),
        ({"model.safetensors.index.json": "{"}, "index.json"),
        ({"model.safetensors.index.json": "{}"}, "index.json"),
        (
            {"model.safetensors.index.json": '{"weight_map": {"a": "model-1.safetensors"}}'},
            "lacks model-1.safetensors",
        ),
        ({"model.safetensors": "", "config.json": "[]"}, "no JSON object"),
    ],
)
def test_read_folder_damaged_raises(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(WeightsError, match=message):
        read_folder(tmp_path)


def test_read_folder_hashes_weights_and_config(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("not part of it")
    names = [file.name for file in read_folder(tmp_path).files]
    assert names == ["config.json", "model.safetensors"]


def meta_module():
    with torch.device("meta"):
        return nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 2), nn.LayerNorm(2))


def test_assign_concatenates_and_converts():
    tensors = {
        "0.weight": torch.ones(3, 4).half(), "q": torch.zeros(1, 4), "k": torch.ones(1, 4),
        "1.bias": torch.arange(2.0), "2.weight": torch.ones(2), "2.bias": torch.zeros(2),
        "extra.x": torch.ones(1),
    }  # fmt: skip
    module = meta_module()
    assign(
        module,
        Checkpoint(tensors, None, [Path("w.pt")]),
        lambda name: ["q", "k"] if name == "1.weight" else [name],
        unused=r"extra\..*",
        device=CPU,
        matrix_dtype=torch.bfloat16,
    )
    assert module[1].weight.tolist() == [[0] * 4, [1] * 4]
    assert module[1].weight.dtype == torch.bfloat16
    assert module[0].weight.dtype == module[2].weight.dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_assign_random_is_seeded_and_scaled():
    one, two, other = (nn.Linear(4096, 64, device="meta") for _ in range(3))
    for module, seed in ((one, 0), (two, 0), (other, 1)):
        assign_random(module, device=CPU, matrix_dtype=torch.float32, seed=seed)
    assert torch.equal(one.weight, two.weight)
    assert not torch.equal(one.weight, other.weight)
    assert 0.95 < float(one.weight.std()) * 64 < 1.05


def test_assign_random_norms_are_identity():
    module = meta_module()
    assign_random(module, device=CPU, matrix_dtype=torch.float32)
    assert module[2].weight.tolist() == [1, 1]
    assert module[2].bias.tolist() == [0, 0]


def test_index_of_shards_is_followed(tmp_path):
    for name in ("a", "b"):
        save_file({name: torch.ones(1)}, tmp_path / f"model-{name}.safetensors")
    index = {"weight_map": {name: f"model-{name}.safetensors" for name in "ab"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text("{}")
    assert sorted(read_folder(tmp_path).tensors) == ["a", "b"]
