import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from virnucpro_pl.errors import WeightsError
from virnucpro_pl.models.esm2 import SIZES, ESM2Config, find_weights, load_esm2, name_of
from virnucpro_pl.models.pooling import pool
from virnucpro_pl.sequences.tokens import ProteinTokenizer, pack

LENGTHS = (1, 300, 2, 7, 150, 33, 1, 64)
CPU = torch.device("cpu")


def pack_of(sequences):
    names, letters = [f"p{i}" for i in range(len(sequences))], [s.encode() for s in sequences]
    return pack(np.arange(len(sequences)), names, letters, ProteinTokenizer())


def load(path, dtype=torch.float32):
    return load_esm2("esm2_t6_8M_UR50D", path, device=CPU, matrix_dtype=dtype)[0]


def hidden_states(encoder, batch, layer=None):
    with torch.no_grad():
        return encoder(batch.tokens, batch.cu_seqlens, batch.max_seqlen, "sdpa", layer)


def split(hidden, batch):
    return hidden.split(batch.cu_seqlens.diff().tolist())


@pytest.fixture(scope="module")
def sequences(random_proteins):
    drawn = random_proteins(LENGTHS)
    drawn[3] = "WXBUZOW"
    return drawn


@pytest.fixture(scope="module")
def batch(sequences):
    return pack_of(sequences)


def rounded(reference):
    """The reference with the numbers, inv_freq included, that a half-stored file holds."""
    from esm.model.esm2 import ESM2

    model = ESM2(len(reference.layers), 32, 4, alphabet="ESM-1b", token_dropout=True)
    model.load_state_dict({k: v.half().float() for k, v in reference.state_dict().items()})
    return model.eval()


@pytest.mark.parametrize("half", [False, True], ids=["single", "half"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_hidden_states_fair_esm_file_equal_fair_esm(
    reference, save_published, fair_esm_layers, sequences, batch, tmp_path, half, zipped
):
    path = save_published(reference.state_dict(), tmp_path / "w.pt", half=half, zipped=zipped)
    model = rounded(reference) if half else reference
    assert half == bool((model.layers[0].self_attn.rot_emb.inv_freq
                         != reference.layers[0].self_attn.rot_emb.inv_freq).any())  # fmt: skip
    encoder = load(path)
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    expected = [fair_esm_layers(s, model) for s in sequences]
    for layer in range(len(reference.layers) + 1):
        hidden = hidden_states(encoder, batch, layer)
        for ours, theirs in zip(split(hidden, batch), expected, strict=True):
            torch.testing.assert_close(ours, theirs[layer], rtol=0, atol=1e-5)
    vectors = pool(hidden, batch.pool_tokens, batch.pool_offsets)
    means = torch.stack([theirs[-1, 1:-1].mean(0) for theirs in expected])
    torch.testing.assert_close(vectors, means, rtol=0, atol=1e-5)


def test_hidden_states_last_layer_is_default(weights_file, batch):
    encoder = load(weights_file)
    assert torch.equal(hidden_states(encoder, batch), hidden_states(encoder, batch, 3))


def test_embed_mask_tokens_scale_as_fair_esm(reference, weights_file):
    tokens = torch.tensor([0, 5, 32, 7, 32, 2])
    with torch.no_grad():
        theirs = reference(tokens[None], repr_layers=[0])["representations"][0][0]
        ours = load(weights_file).embed(tokens, torch.tensor([0, 6], dtype=torch.int32))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_hidden_states_token_dropout_off_are_unscaled(reference, save_published, tmp_path):
    path = save_published(reference.state_dict(), tmp_path / "w.pt")
    content = torch.load(path, weights_only=False)
    content["cfg"]["model"].token_dropout = False
    torch.save(content, path)
    out = load(path).embed(torch.tensor([0, 5, 2]), torch.tensor([0, 3], dtype=torch.int32))
    assert torch.equal(out, reference.embed_tokens.weight[[0, 5, 2]])


@pytest.mark.parametrize("form", ["safetensors", "sharded", "bin", "sharded_bin", "bare"])
def test_hidden_states_transformers_folder_equal_transformers(sequences, batch, tmp_path, form):
    model = transformers_model()
    save_folder(model, tmp_path, form)
    encoder = load(tmp_path)
    for i, sequence in enumerate(sequences):
        tokens, _ = ProteinTokenizer().encode([sequence.encode()])
        with torch.no_grad():
            out = model.esm(torch.from_numpy(tokens)[None], output_hidden_states=True)
        for layer in (0, 1, 2):
            theirs = out.last_hidden_state[0] if layer == 2 else out.hidden_states[layer][0]
            ours = split(hidden_states(encoder, batch, layer), batch)[i]
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def transformers_model():
    from transformers import EsmConfig, EsmForMaskedLM

    torch.manual_seed(1)
    config = EsmConfig(
        vocab_size=33, mask_token_id=32, pad_token_id=1, hidden_size=32, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=128, position_embedding_type="rotary",
        token_dropout=True, emb_layer_norm_before=False, layer_norm_eps=1e-5,
    )  # fmt: skip
    model = EsmForMaskedLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=0.02, std=0.15)
    return model


def save_folder(model, folder, form):
    """Save as transformers does, or as its earlier versions did."""
    if form == "bare":
        model.esm.save_pretrained(folder)
        return
    model.save_pretrained(folder, max_shard_size="30KB" if form.startswith("sharded") else "5GB")
    if not form.endswith("bin"):
        return
    for file in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
        renamed = file.name.replace("model", "pytorch_model").replace("safetensors", "bin")
        if file.suffix == ".safetensors":
            torch.save(load_file(file), folder / renamed)
        else:
            text = file.read_text().replace("model-", "pytorch_model-")
            (folder / renamed).write_text(text.replace(".safetensors", ".bin"))
        file.unlink()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layer_norm_eps", 1e-12),
        ("position_embedding_type", "absolute"),
        ("emb_layer_norm_before", True),
        ("model_type", "bert"),
        ("num_attention_heads", "four"),
        ("num_attention_heads", 5),
    ],
)
def test_load_folder_of_another_architecture_raises(tmp_path, key, value):
    save_folder(transformers_model(), tmp_path, "safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(WeightsError, match=key):
        load(tmp_path)


def test_hidden_states_neighbours_change_nothing(weights_file, sequences, random_proteins):
    encoder = load(weights_file)
    alone = [hidden_states(encoder, pack_of([s])) for s in sequences]
    for neighbours in (random_proteins([5, 200], seed=7), []):
        batch = pack_of([*neighbours[:1], *sequences, *neighbours[1:]])
        parts = split(hidden_states(encoder, batch), batch)
        own = parts[1:-1] if neighbours else parts
        for together, by_itself in zip(own, alone, strict=True):
            torch.testing.assert_close(together, by_itself, rtol=0, atol=2e-6)


def test_hidden_states_poisoned_sequence_leaves_others_alone(poisoned_file, weights_file):
    sequences = ["ACDEF", "ACWEF", "GHIKLMN"]
    batch = pack_of(sequences)
    hidden = hidden_states(load(poisoned_file), batch)
    vectors = pool(hidden, batch.pool_tokens, batch.pool_offsets)
    assert vectors.isfinite().all(dim=1).tolist() == [True, False, True]
    healthy = hidden_states(load(weights_file), batch)
    torch.testing.assert_close(split(hidden, batch)[2], split(healthy, batch)[2], rtol=0, atol=2e-6)


def test_load_missing_and_unexpected_tensors_are_named(reference, save_published, tmp_path):
    state = dict(reference.state_dict())
    state["layers.1.fc1.wheight"] = state.pop("layers.1.fc1.weight")
    path = save_published(state, tmp_path / "w.pt")
    with pytest.raises(WeightsError) as caught:
        load(path)
    assert "missing layers.1.fc1.weight" in str(caught.value)
    assert "unexpected layers.1.fc1.wheight" in str(caught.value)
    assert str(path) in str(caught.value)


def test_load_other_shape_is_named(reference, save_published, tmp_path):
    state = dict(reference.state_dict())
    state["layers.0.fc2.bias"] = torch.zeros(31)
    with pytest.raises(WeightsError, match=r"layers\.0\.fc2\.bias.*\(31,\).*\(32,\)"):
        load(save_published(state, tmp_path / "w.pt"))


def test_load_without_inv_freq_uses_formula(reference, save_published, weights_file, tmp_path):
    state = {k: v for k, v in reference.state_dict().items() if not k.endswith("inv_freq")}
    encoder = load(save_published(state, tmp_path / "w.pt"))
    torch.testing.assert_close(encoder.inverse_frequency, load(weights_file).inverse_frequency)


def test_load_differing_inv_freq_raises(reference, save_published, tmp_path):
    state = {k: v.clone() for k, v in reference.state_dict().items()}
    state["layers.1.self_attn.rot_emb.inv_freq"] += 1
    with pytest.raises(WeightsError, match="inv_freq differ"):
        load(save_published(state, tmp_path / "w.pt"))


def test_load_half_matrices_keep_norms_and_embedding_single(weights_file):
    dtypes = {n: p.dtype for n, p in load(weights_file, torch.bfloat16).named_parameters()}
    for name, dtype in dtypes.items():
        single = "norm" in name or "embed" in name
        assert dtype == (torch.float32 if single else torch.bfloat16), name


def test_load_random_twice_equal():
    one, two = load(None), load(None)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert len(one.layers) == 6


def test_sizes_all_published_names_have_whole_heads():
    assert [name.split("_")[2] for name in SIZES] == ["8M", "35M", "150M", "650M", "3B", "15B"]
    assert all(size.width % (2 * size.heads) == 0 for size in SIZES.values())


def test_find_weights_unknown_name_lists_names():
    with pytest.raises(WeightsError, match="esm2_t36_3B_UR50D"):
        find_weights("esm2_3B", None)


def test_find_weights_missing_path_raises(tmp_path):
    with pytest.raises(WeightsError, match="no such weights"):
        find_weights("esm2_t6_8M_UR50D", str(tmp_path / "absent.pt"))


def test_find_weights_cached_file_is_not_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    cached = tmp_path / "checkpoints" / "esm2_t6_8M_UR50D.pt"
    cached.parent.mkdir()
    cached.touch()
    assert find_weights("esm2_t6_8M_UR50D", None) == cached


def test_name_of_is_the_published_one_of_these_sizes_or_the_given_one():
    assert name_of(ESM2Config(33, 1280, 20, False), "mine") == "esm2_t33_650M_UR50D"
    assert name_of(ESM2Config(33, 1280, 40), "mine") == "mine"
