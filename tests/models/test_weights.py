from pathlib import Path

import pytest
import torch
from torch import nn

from virnucpro_pl.errors import WeightsError
from virnucpro_pl.models.checkpoint import Checkpoint
from virnucpro_pl.models.weights import assign, assign_random, bare_sizes

CPU = torch.device("cpu")


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
        Checkpoint(Path("w.pt"), tensors, None, []),
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


class Encoder(nn.Module):
    """Two parameters under names of an encoder."""

    def __init__(self):
        super().__init__()
        self.embeddings = nn.Embedding(3, 2, device="meta")
        self.layers = nn.ModuleList([nn.LayerNorm(2, device="meta")])


TENSORS = {
    "embeddings.weight": torch.full((3, 2), 1.0),
    "layers.0.weight": torch.full((2,), 2.0),
    "layers.0.bias": torch.full((2,), 3.0),
}


def fill(tensors):
    encoder = Encoder()
    checkpoint = Checkpoint(Path("w.pt"), tensors, None, [])
    assign(
        encoder, checkpoint, lambda name: [name], unused=r"embeddings\.position_ids", device=CPU,
        matrix_dtype=torch.float32,
    )  # fmt: skip
    return encoder


def behind(prefix):
    return {f"{prefix}{name}": tensor for name, tensor in TENSORS.items()}


@pytest.mark.parametrize(
    "prefix",
    ["", "esm.", "bert.", "module.", "model.", "encoder.", "module.esm.", "model.model.",
     "encoder.sentence_encoder.", "module._orig_mod.model.bert."],
)  # fmt: skip
def test_assign_prefix_of_all_is_removed_and_heads_are_left_out(prefix, caplog):
    caplog.set_level("INFO")
    heads = {f"{prefix}pooler.dense.weight": torch.ones(1), "classifier.bias": torch.ones(1)}
    heads |= {"classifier.weight": torch.ones(1), "scale": torch.ones(1)}
    encoder = fill({**behind(prefix), **heads, f"{prefix}embeddings.position_ids": torch.ones(1)})
    assert encoder.layers[0].bias.tolist() == [3.0, 3.0]
    [record] = caplog.records
    left_out = sorted(["classifier.*", f"{prefix}pooler.*", "scale"])
    assert record.getMessage() == f"w.pt: left out {', '.join(left_out)}, no part of the encoder"


def test_assign_nothing_left_out_is_not_logged(caplog):
    caplog.set_level("INFO")
    fill({**behind("esm."), "esm.embeddings.position_ids": torch.ones(1)})
    assert not caplog.records


def test_assign_config_that_is_not_used_is_told(caplog):
    caplog.set_level("INFO")
    checkpoint = Checkpoint(Path("w.pt"), TENSORS, None, [], is_config_unused=True)
    assign(Encoder(), checkpoint, lambda name: [name], unused="", device=CPU,
           matrix_dtype=torch.float32)  # fmt: skip
    [record] = caplog.records
    said = "config.json beside it names no model_type and is not used"
    assert record.getMessage() == f"w.pt: {said}"
    with pytest.raises(WeightsError, match=rf"missing table or its layers, and {said}"):
        bare_sizes(checkpoint, "table", r"layer\.(\d+)")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"esm.layers.0.bias": None}, "missing esm.layers.0.bias; unexpected nothing"),
        ({"layers.0.bias": torch.ones(2)}, "twice, as esm.layers.0.bias and as layers.0.bias"),
        ({"module.esm.layers.0.bias": torch.ones(2)}, "and as module.esm.layers.0.bias"),
        (
            {"esm.layers.0.bias": None, "layers.0.bias": torch.ones(2)},
            "missing esm.layers.0.bias; unexpected layers.0.bias",
        ),
        ({"esm.layers.1.bias": torch.ones(2)}, "unexpected esm.layers.1.bias"),
        ({"esm.embed_positions.weight": torch.ones(2)}, "unexpected esm.embed_positions.weight"),
        ({"esm.emb_layer_norm_before.bias": torch.ones(2)}, "unexpected esm.emb_layer_norm_bef"),
        ({"esm.layers.0.bias": torch.ones(3)}, r"esm.layers.0.bias has shape .*\(3,\).*\(2,\)"),
        ({"esm.layers.0.lora_A.weight": torch.ones(2)}, "0.lora_A.weight. Merge LoRA"),
        ({"prompt.lora_B.weight": torch.ones(2)}, "unexpected prompt.lora_B.weight. Merge LoRA"),
        *(
            ({f"{name}.weight": torch.ones(2)}, f"unexpected {name}.weight. Merge LoRA or adapter")
            for name in ("esm.adapters.0.down", "esm.invertible_adapters.F.0", "adapters.layer.0.x",
                         "esm.prompt_adapter.up", "module.adapters.0")
        ),
    ],
)  # fmt: skip
def test_assign_encoder_that_is_not_whole_raises(change, message):
    tensors = behind("esm.") | change
    with pytest.raises(WeightsError, match=rf"w\.pt.*{message}"):
        fill({name: tensor for name, tensor in tensors.items() if tensor is not None})


def test_assign_adapters_at_the_top_of_a_bare_encoder_raise():
    with pytest.raises(WeightsError, match=r"unexpected adapters\.layer\.0\.x\. Merge LoRA"):
        fill({**behind(""), "adapters.layer.0.x": torch.ones(2)})


@pytest.mark.parametrize("prefix", ["", "esm."])
def test_assign_adapter_of_a_head_is_left_out(prefix, caplog):
    caplog.set_level("INFO")
    fill({**behind(prefix), "domain_adapter.weight": torch.ones(2)})
    assert "left out domain_adapter.*, no part of the encoder" in caplog.text


def test_assign_adapter_in_place_of_the_encoder_raises():
    adapters = {f"base_model.model.{name}": t for name, t in behind("esm.").items()}
    with pytest.raises(WeightsError, match=r"missing embeddings\.weight, layers"):
        fill(adapters)


def test_assign_norms_under_tensorflow_names_are_found():
    encoder = nn.ModuleDict({"LayerNorm": nn.LayerNorm(2, device="meta")})
    tensors = {"esm.x.LayerNorm.gamma": torch.ones(2), "esm.x.LayerNorm.beta": torch.zeros(2)}
    checkpoint = Checkpoint(Path("w.pt"), tensors, None, [])
    assign(
        encoder, checkpoint, lambda name: [f"x.{name}"], unused="", device=CPU,
        matrix_dtype=torch.float32,
    )  # fmt: skip
    assert encoder["LayerNorm"].weight.tolist() == [1.0, 1.0]
    with pytest.raises(WeightsError, match=r"gamma and as esm\.x\.LayerNorm\.weight"):
        assign(
            encoder,
            checkpoint._replace(tensors=tensors | {"esm.x.LayerNorm.weight": torch.ones(2)}),
            lambda name: [f"x.{name}"], unused="", device=CPU, matrix_dtype=torch.float32,
        )  # fmt: skip


def test_bare_sizes_are_those_of_the_tensors_behind_any_prefix():
    tensors = {"model.table": torch.ones(5, 4), "model.layer.0.w": torch.ones(1)}
    tensors["model.layer.10.w"] = torch.ones(1)
    checkpoint = Checkpoint(Path("w.pt"), tensors, None, [])
    assert bare_sizes(checkpoint, "table", r"layer\.(\d+)\.w") == (11, 5, 4)
    with pytest.raises(WeightsError, match=r"w\.pt .*missing other"):
        bare_sizes(checkpoint, "other", r"layer\.(\d+)\.w")
