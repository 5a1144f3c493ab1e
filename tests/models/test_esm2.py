import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from virnucpro_pl.errors import WeightsError
from virnucpro_pl.input.packed_batch import pack
from virnucpro_pl.input.protein_tokens import ProteinTokenizer
from virnucpro_pl.models.esm2 import SIZES, ESM2Config
from virnucpro_pl.models.esm2_files import find_weights, load_esm2, read_config
from virnucpro_pl.models.pooling import pool

LENGTHS = (1, 300, 2, 7, 150, 33, 1, 64)
CPU = torch.device("cpu")
SMALLEST = "esm2_t6_8M_UR50D"


def pack_of(sequences):
    names, letters = [f"p{i}" for i in range(len(sequences))], [s.encode() for s in sequences]
    return pack(np.arange(len(sequences)), names, letters, ProteinTokenizer())


def load(path, dtype=torch.float32, name=None):
    return load_esm2(name, path, device=CPU, matrix_dtype=dtype)[0]


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
    assert_equal_transformers(load(tmp_path), model.esm, sequences, batch)


def assert_equal_transformers(encoder, esm, sequences, batch):
    last = len(encoder.layers)
    ours = [split(hidden_states(encoder, batch, layer), batch) for layer in range(last + 1)]
    for i, sequence in enumerate(sequences):
        tokens, _ = ProteinTokenizer().encode([sequence.encode()])
        with torch.no_grad():
            out = esm(torch.from_numpy(tokens)[None], output_hidden_states=True)
        for layer in range(last + 1):
            theirs = out.last_hidden_state[0] if layer == last else out.hidden_states[layer][0]
            torch.testing.assert_close(ours[layer][i], theirs, rtol=0, atol=1e-5)


def transformers_model(kind="EsmForMaskedLM", **options):
    import transformers

    torch.manual_seed(1)
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "token_dropout": True,
    }
    config = transformers.EsmConfig(
        vocab_size=33, mask_token_id=32, pad_token_id=1, position_embedding_type="rotary",
        emb_layer_norm_before=False, layer_norm_eps=1e-5, **sizes | options,
    )  # fmt: skip
    model = getattr(transformers, kind)(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=0.02, std=0.15)
    return model


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        ("EsmForSequenceClassification", "classifier.*"),
        ("EsmForTokenClassification", "classifier.*"),
        ("EsmForMaskedLM", "lm_head.*"),
    ],
)
def test_hidden_states_fine_tuned_folder_equal_transformers(
    sequences, batch, tmp_path, caplog, kind, head
):
    caplog.set_level("INFO")
    model = transformers_model(kind)
    model.save_pretrained(tmp_path)
    assert_equal_transformers(load(tmp_path), model.esm, sequences, batch)
    [line] = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert head in line
    assert "esm.contact_head.*" in line
    assert "model.safetensors" in line


@pytest.mark.parametrize("stated", [True, False], ids=["false", "absent"])
def test_hidden_states_token_dropout_off_equal_transformers(sequences, batch, tmp_path, stated):
    model = transformers_model(token_dropout=False)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("token_dropout") is False  # what transformers takes where it is absent
    if not stated:
        (tmp_path / "config.json").write_text(json.dumps(config))
    assert_equal_transformers(load(tmp_path), model.esm, sequences, batch)


def test_hidden_states_lightning_checkpoint_beside_its_config(sequences, batch, tmp_path):
    model = transformers_model("EsmForSequenceClassification")
    model.config.save_pretrained(tmp_path)
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    state["loss.weight"] = torch.ones(2)
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": state, "epoch": 1, "hyper_parameters": {"lr": 1e-4}}, path)
    assert_equal_transformers(load(path), model.esm, sequences, batch)


@pytest.fixture(scope="module")
def smallest():
    sizes = SIZES[SMALLEST]
    return transformers_model(
        hidden_size=sizes.width, num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads, intermediate_size=4 * sizes.width,
    )  # fmt: skip


@pytest.mark.parametrize("name", [SMALLEST, None])
@pytest.mark.parametrize("form", ["safetensors", "state dict", "older state dict", "lightning"])
def test_load_bare_tensors_of_a_published_size(smallest, tmp_path, form, name):
    state = {key: tensor.clone() for key, tensor in smallest.state_dict().items()}
    path = tmp_path / "tuned"
    if form == "safetensors":
        save_file(state, path)
    elif form == "older state dict":  # has learned positions beside rotary ones, never read
        state["esm.embeddings.position_embeddings.weight"] = torch.ones(9, 320)
        torch.save(state, path)
    else:
        torch.save(state if form == "state dict" else {"state_dict": state}, path)
    assert read_config(name, path)[0].name == SMALLEST
    encoder = load(path, name=name)
    table = smallest.esm.embeddings.word_embeddings.weight
    assert torch.equal(encoder.embed_tokens.weight, table)
    assert encoder.config == SIZES[SMALLEST]


def test_load_bare_tensors_of_fair_esm(tmp_path):
    from esm.model.esm2 import ESM2

    path = tmp_path / "tuned.pth"
    state = ESM2(6, 320, 20, alphabet="ESM-1b", token_dropout=True).state_dict()
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, path)
    assert torch.equal(load(path).embed_tokens.weight, state["embed_tokens.weight"])


@pytest.mark.parametrize("of", ["transformers", "fair-esm"])
def test_load_bare_tensors_with_learned_positions_are_no_esm2(smallest, tmp_path, of):
    if of == "transformers":
        state = {k: t for k, t in smallest.state_dict().items() if not k.endswith("inv_freq")}
        extra = "esm.embeddings.position_embeddings.weight"
    else:
        from esm.model.esm2 import ESM2

        state = ESM2(6, 320, 20, alphabet="ESM-1b", token_dropout=True).state_dict()
        extra = "embed_positions.weight"
    torch.save({**state, extra: torch.ones(1026, 320)}, tmp_path / "esm1v.pt")
    with pytest.raises(WeightsError, match=rf"esm1v\.pt .*unexpected {extra}"):
        load(tmp_path / "esm1v.pt", name=SMALLEST)


def test_load_bare_tensors_of_no_published_size_ask_for_config(tmp_path):
    model = transformers_model()
    path = tmp_path / "tuned.pt"
    torch.save(model.state_dict(), path)
    with pytest.raises(WeightsError, match=r"tuned\.pt has 2 layers of 32, .*config\.json"):
        load(path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(WeightsError, match=r"heads, and config\.json beside it names no"):
        load(path)
    (tmp_path / "config.json").unlink()
    torch.save({"a": torch.ones(1)}, path)
    with pytest.raises(WeightsError, match=r"tuned\.pt .*missing embeddings\.word_embeddings"):
        load(path)
    model.config.save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"tuned\.pt .*missing embeddings\.word_embeddings"):
        load(path)


def test_load_name_of_another_model_tells_both(weights_file):
    with pytest.raises(WeightsError, match=r"tiny\.pt is ESM-2, 3 layers of 32, .*says esm2_t6_8M"):
        load(weights_file, name=SMALLEST)


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
        ("position_embedding_type", None),
        ("emb_layer_norm_before", True),
        ("is_decoder", True),
        ("model_type", "bert"),
        ("num_attention_heads", "four"),
        ("num_attention_heads", 5),
        ("num_attention_heads", 4.9),
        ("num_attention_heads", True),
        ("num_attention_heads", 10**30),
        ("num_hidden_layers", 10**30),
        ("num_hidden_layers", -1),
        ("hidden_size", 2**40),
        ("hidden_size", float("inf")),
        ("token_dropout", "false"),
        ("token_dropout", 2),
    ],
)
def test_load_folder_of_another_architecture_raises(tmp_path, key, value):
    save_folder(transformers_model(), tmp_path, "safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    changed = {k: v for k, v in {**config, key: value}.items() if v is not None}
    (tmp_path / "config.json").write_text(json.dumps(changed))
    with pytest.raises(WeightsError, match=key):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("token_dropout", "false"),
        ("encoder_layers", 3.0),
        ("encoder_layers", 10**9),
        ("encoder_embed_dim", 2**62),
        ("encoder_attention_heads", [4]),
    ],
)
def test_load_fair_esm_file_of_other_sizes_raises(weights_file, tmp_path, name, value):
    content = torch.load(weights_file, weights_only=False)
    setattr(content["cfg"]["model"], name, value)
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=rf"w\.pt: {name}"):
        load(tmp_path / "w.pt")


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
    prefix = "encoder.sentence_encoder."
    path = save_published(state, tmp_path / "w.pt")
    with pytest.raises(WeightsError) as caught:
        load(path)
    assert f"missing {prefix}layers.1.fc1.weight" in str(caught.value)
    assert f"unexpected {prefix}layers.1.fc1.wheight" in str(caught.value)
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


def test_load_rotary_table_and_attention_of_a_head_are_left_out(sequences, batch, tmp_path):
    model = transformers_model("EsmForMaskedLM")
    head = {
        "head.rotary.inv_freq": torch.full((4,), 9.0),
        "head.layers.0.self_attn.in_proj_weight": torch.zeros(3, 1),
        "domain_adapter.weight": torch.zeros(1),
    }
    torch.save(model.state_dict() | head, tmp_path / "pytorch_model.bin")
    model.config.save_pretrained(tmp_path)
    assert_equal_transformers(load(tmp_path), model.esm, sequences, batch)


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("fc1.weight", lambda t: t.to(torch.int8), "fc1.weight holds torch.int8, as quantised"),
        ("self_attn.q_proj.bias", lambda t: torch.zeros(64), r"q_proj.bias has shape \(64,\)"),
        ("self_attn.rot_emb.inv_freq", lambda t: t[:2], r"inv_freq (differ|has shape \(2,\))"),
    ],
)
def test_load_tensor_that_does_not_fit_is_named(
    reference, save_published, tmp_path, name, spoil, message
):
    state = {k: v.clone() for k, v in reference.state_dict().items()}
    for layer in range(3):
        state[f"layers.{layer}.{name}"] = spoil(state[f"layers.{layer}.{name}"])
    if "q_proj" in name:  # as many rows in all
        state["layers.0.self_attn.k_proj.bias"] = torch.zeros(16)
        state["layers.0.self_attn.v_proj.bias"] = torch.zeros(16)
    with pytest.raises(WeightsError, match=message):
        load(save_published(state, tmp_path / "w.pt"))


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
    one, two = load(None, name=SMALLEST), load(None, name=SMALLEST)
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


def test_name_is_the_published_one_of_these_sizes_or_the_sizes():
    assert ESM2Config(33, 1280, 20, False).name == "esm2_t33_650M_UR50D"
    assert ESM2Config(33, 1280, 40).name == "ESM-2, 33 layers of 1280"
