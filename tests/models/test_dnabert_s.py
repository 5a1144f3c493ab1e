import huggingface_hub.constants
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file

from virnucpro_pl.errors import UsageError, WeightsError
from virnucpro_pl.models import attention, padded_attention
from virnucpro_pl.models.dnabert_s import SIZES, alibi_slopes
from virnucpro_pl.models.dnabert_s_files import (
    find_weights,
    load_dnabert_s,
    read_config,
    revision,
)
from virnucpro_pl.predict.embedders import DNABERTSEmbedder

LENGTHS = (1, 700, 2, 7, 300, 33, 1, 64, 299)
CPU = torch.device("cpu")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def load(path, dtype=torch.float32, size="published"):
    return load_dnabert_s(size, path, device=CPU, matrix_dtype=dtype)[0]


def hidden_states(encoder, sequences, backend="sdpa", **options):
    tokens = torch.cat(sequences)
    lengths = torch.tensor([len(s) for s in sequences])
    cu_seqlens = torch.cat((torch.zeros(1), lengths.cumsum(0))).int()
    with torch.no_grad():
        hidden = encoder(tokens, cu_seqlens, int(lengths.max()), backend, **options)
    return hidden.split(lengths.tolist())


@pytest.fixture(scope="module")
def sequences():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(4096, (length,), generator=generator) for length in LENGTHS]


@pytest.fixture(scope="module", params=[4, 12])
def reference(request, plain_dnabert_s):
    return plain_dnabert_s(request.param)


@pytest.fixture(scope="module")
def expected(reference, sequences):
    return [reference.hidden(sequence) for sequence in sequences]


@pytest.fixture(scope="module")
def encoder(reference, tmp_path_factory):
    return load(reference.save(tmp_path_factory.mktemp("weights")))


def test_hidden_states_packed_equal_reference(encoder, expected, sequences):
    for layer in (0, 1, None):
        found = hidden_states(encoder, sequences, layer=layer)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(
                ours, theirs[-1 if layer is None else layer], rtol=0, atol=1e-5
            )


def test_hidden_states_alone_equal_packed(encoder, sequences):
    packed = hidden_states(encoder, sequences)
    for sequence, together in zip(sequences, packed, strict=True):
        alone = hidden_states(encoder, [sequence])[0]
        torch.testing.assert_close(alone, together, rtol=0, atol=1e-5)


def test_hidden_states_other_neighbours_change_nothing(encoder, sequences):
    before = hidden_states(encoder, sequences)
    others = [s if i == 3 else s.flip(0) for i, s in enumerate(sequences)]
    assert torch.equal(hidden_states(encoder, others)[3], before[3])


def test_hidden_states_bias_in_pieces_equal_reference(encoder, expected, sequences, monkeypatch):
    monkeypatch.setattr(padded_attention, "_BIAS_ELEMENTS", 5_000)  # one query at a time
    for ours, theirs in zip(hidden_states(encoder, sequences), expected, strict=True):
        torch.testing.assert_close(ours, theirs[-1], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("heads", "slopes"),
    [
        (1, [2**-8]),
        (4, [1 / 4, 1 / 16, 1 / 64, 1 / 256]),
        (6, [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8]),
        (8, [2.0**-k for k in range(1, 9)]),
        (12, [2.0**-k for k in range(1, 9)] + [2.0 ** -(k + 0.5) for k in range(4)]),
    ],
)
def test_alibi_slopes_any_number_of_heads_as_published(heads, slopes):
    torch.testing.assert_close(alibi_slopes(heads), torch.tensor(slopes), rtol=0, atol=0)


@pytest.mark.parametrize("prefix", ["", "bert."])
@pytest.mark.parametrize("form", ["bin", "safetensors"])
@pytest.mark.parametrize("named", ["folder", "file"])
def test_load_authors_format_fills_every_parameter(
    encoder, reference, tmp_path, prefix, form, named
):
    folder = reference.save(tmp_path, prefix=prefix, form=form)
    file = next(f for f in folder.iterdir() if f.stem in ("pytorch_model", "model"))
    other, files = load_dnabert_s(
        "published", folder if named == "folder" else file, device=CPU, matrix_dtype=torch.float32
    )
    assert files == sorted([folder / "config.json", file])
    for ours, theirs in zip(other.parameters(), encoder.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_load_unused_tensors_are_passed_over(plain_dnabert_s, tmp_path):
    reference = plain_dnabert_s(4)
    folder = reference.save(tmp_path, prefix="bert.")
    state = torch.load(folder / "pytorch_model.bin")
    state |= {"cls.predictions.bias": torch.zeros(4096)}
    state |= {"bert.embeddings.position_ids": torch.arange(512)[None]}
    torch.save(state, folder / "pytorch_model.bin")
    load(folder)


@pytest.mark.parametrize("form", ["state dict", "lightning", "safetensors"])
def test_load_bare_tensors_of_the_published_size(tmp_path, plain_dnabert_s, form):
    reference = plain_dnabert_s(12, layers=12, width=768, inner=3072)
    state = {f"model.bert.{name}": tensor for name, tensor in reference.state.items()}
    state["model.classifier.weight"] = torch.ones(2, 768)
    path = tmp_path / "tuned"
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(state if form == "state dict" else {"state_dict": state}, path)
    assert read_config(path)[0].name == "DNABERT-S"
    encoder = load(path)
    table = reference.state["embeddings.word_embeddings.weight"]
    assert torch.equal(encoder.embed_tokens.weight, table)


def test_load_bare_tensors_of_another_size_ask_for_config(plain_dnabert_s, tmp_path):
    reference = plain_dnabert_s(4)
    torch.save(reference.state, tmp_path / "tuned.pt")
    with pytest.raises(WeightsError, match=r"tuned\.pt has 3 layers of 48 and .*config\.json"):
        load(tmp_path / "tuned.pt")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(WeightsError, match=r"heads, and config\.json beside it names no"):
        load(tmp_path / "tuned.pt")
    (tmp_path / "config.json").unlink()
    reference.save(tmp_path)
    assert load(tmp_path / "tuned.pt").config.heads == 4


def test_load_plain_bert_is_another_architecture(tmp_path):
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=64, hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=80,
    )  # fmt: skip
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"model\.safetensors .*Wqkv.*position_embeddings"):
        load(tmp_path)


def test_name_is_the_published_one_of_these_sizes_or_the_sizes():
    assert SIZES["published"]._replace(vocabulary=5000).name == "DNABERT-S"
    assert SIZES["published"]._replace(heads=6).name == "DNABERT-S, 12 layers of 768"


def test_load_half_file_computes_in_single(plain_dnabert_s, sequences, tmp_path):
    reference = plain_dnabert_s(4, seed=2)
    folder = reference.save(tmp_path)
    state = {name: tensor.half() for name, tensor in reference.state.items()}
    torch.save(state, folder / "pytorch_model.bin")
    encoder = load(folder)
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    rounded = type(reference)(4)
    rounded.state = {name: tensor.float() for name, tensor in state.items()}
    ours = hidden_states(encoder, sequences[2:3])[0]
    torch.testing.assert_close(ours, rounded.hidden(sequences[2])[-1], rtol=0, atol=1e-5)


def test_load_in_half_keeps_norms_and_embeddings_single(plain_dnabert_s, tmp_path):
    encoder = load(plain_dnabert_s(4).save(tmp_path), torch.float16)
    assert encoder.layers[0].qkv.weight.dtype == torch.float16
    assert encoder.embed_tokens.weight.dtype == torch.float32
    assert encoder.slopes.dtype == torch.float32


def test_load_wrong_tensors_are_named(plain_dnabert_s, tmp_path):
    folder = plain_dnabert_s(4).save(tmp_path)
    state = torch.load(folder / "pytorch_model.bin")
    state["encoder.layer.1.mlp.w1.weight"] = state.pop("encoder.layer.1.mlp.wo.weight")
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"missing encoder\.layer\.1\.mlp\.wo\.weight; ") as info:
        load(folder)
    assert "unexpected encoder.layer.1.mlp.w1.weight" in str(info.value)


def test_load_wrong_shape_is_named(plain_dnabert_s, tmp_path):
    reference = plain_dnabert_s(4)
    folder = reference.save(tmp_path)
    state = reference.state | {"encoder.layer.0.mlp.gated_layers.weight": torch.zeros(80, 48)}
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"layer\.0\.mlp\.gated_layers\.weight.*\(80, 48\)"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"num_attention_heads": 5}, "5 heads"),
        ({"num_hidden_layers": "many"}, "no whole number from 1"),
        ({"intermediate_size": None}, "no whole number from 1"),
        ({"intermediate_size": -80}, "no whole number from 1"),
        ({"vocab_size": 2.5}, "no whole number from 1"),
        ({"hidden_size": float("inf")}, "no whole number from 1"),
        ({"hidden_size": 2**62}, "no whole number from 1"),
        ({"num_hidden_layers": 10**9}, "no whole number from 1"),
        ({"layer_norm_eps": float("nan")}, "no small number above 0"),
        ({"layer_norm_eps": "1"}, "no small number above 0"),
    ],
)
def test_load_other_architecture_is_refused(plain_dnabert_s, tmp_path, change, message):
    reference = type(plain_dnabert_s(4))(4)
    reference.config = reference.config | change
    with pytest.raises(WeightsError, match=message):
        load(reference.save(tmp_path))


def test_random_weights_are_the_same_each_time():
    first, second = load(None, size="tiny"), load(None, size="tiny")
    assert first.config == SIZES["tiny"]
    assert all(map(torch.equal, first.parameters(), second.parameters()))


def test_find_weights_random_warns(caplog):
    assert find_weights("published", "random") is None
    assert "RANDOM" in caplog.text


def test_find_weights_size_of_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="size 'tiny' is for random weights"):
        find_weights("tiny", str(tmp_path))


def test_find_weights_missing_path_is_named(tmp_path):
    with pytest.raises(WeightsError, match="nowhere: no such"):
        find_weights("published", str(tmp_path / "nowhere"))


def test_find_weights_published_from_cache_with_its_commit(plain_dnabert_s, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    cache = tmp_path / "models--zhihan1996--DNABERT-S"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(COMMIT)
    folder = plain_dnabert_s(4).save(cache / "snapshots" / COMMIT)
    assert find_weights("published", None) == folder
    assert revision(folder) == COMMIT
    assert revision(tmp_path) is None
    assert revision(None) is None


def test_find_weights_published_offline_says_what_to_do(monkeypatch):
    def offline(repository, **options):
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(WeightsError) as info:
        find_weights("published", None)
    for words in ("zhihan1996/DNABERT-S", "no network", "https://huggingface.co", "random"):
        assert words in str(info.value)
    for name in ("config.json", "tokenizer.json", "model.safetensors", "pytorch_model.bin"):
        assert name in str(info.value)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_find_weights_published_fetches_one_format_of_one_commit(
    plain_dnabert_s, tmp_path, monkeypatch, kind
):
    calls = []

    def fetch(repository, local_files_only=False, **options):
        if local_files_only:
            raise LocalEntryNotFoundError("nothing there")
        calls.append(options)
        folder = tmp_path / COMMIT
        plain_dnabert_s(4).save(folder, form=kind)
        if kind == "bin" and len(calls) == 1:
            (folder / "pytorch_model.bin").unlink()
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert find_weights("published", None) == tmp_path / COMMIT
    assert "pytorch_model*.bin*" not in calls[0]["allow_patterns"]
    if kind == "safetensors":
        assert len(calls) == 1
    else:
        assert calls[1] == {"revision": COMMIT, "allow_patterns": ["pytorch_model*.bin*"]}


def test_alibi_slopes_are_fp32_whatever_the_default():
    expected = alibi_slopes(12)
    torch.set_default_dtype(torch.float16)
    try:
        slopes = alibi_slopes(12)
    finally:
        torch.set_default_dtype(torch.float32)
    assert slopes.dtype == torch.float32
    assert torch.equal(slopes, expected)


def test_choose_attention_packed_needs_gpu_and_half(caplog, monkeypatch):
    caplog.set_level("INFO")
    cuda = torch.device("cuda")
    card = attention.Card("NVIDIA H200", (9, 0))
    monkeypatch.setattr(attention, "find_card", lambda d: card if d.type == "cuda" else None)
    for asked, device, reduced, used in (
        ("auto", cuda, True, "triton"),
        ("auto", cuda, False, "sdpa"),
        ("auto", CPU, True, "sdpa"),
        ("triton", cuda, False, "sdpa"),
        ("sdpa", cuda, True, "sdpa"),
    ):
        choose = attention.choose_attention
        assert choose(asked, device=device, reduced=reduced, biased=True) == used
    assert "triton: packed kernels need FP16 or BF16" in caplog.text
    with pytest.raises(UsageError, match="Attention triton cannot run here"):
        attention.choose_attention("triton", device=CPU, reduced=True, biased=True)
    with pytest.raises(UsageError, match="one of auto, triton, sdpa, not varlen"):
        attention.choose_attention("varlen", device=cuda, reduced=True, biased=True)


def test_embedder_too_small_a_model_for_the_tokenizer_is_refused(plain_dnabert_s, tmp_path):
    folder = plain_dnabert_s(4, vocabulary=1_000).save(tmp_path)
    embedder = DNABERTSEmbedder(weights=str(folder))
    with pytest.raises(UsageError, match=r"tokenizer\.json has 1369 tokens, but .* knows 1000"):
        embedder.load_encoder(folder, CPU, torch.float32)


def test_embedder_layer_beyond_the_last_is_refused():
    embedder = DNABERTSEmbedder(weights="random", size="tiny", layer=3)
    with pytest.raises(UsageError, match="layers 0 to 2, not 3"):
        embedder.load_encoder(None, CPU, torch.float32)
