import gc
import os
import subprocess
import sys
import time
import warnings

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from virnucpro_pl import DNABERTSEmbedder, ESM2Embedder, PrecisionFromEnv, SequenceDataModule
from virnucpro_pl.input.dna_tokens import DNATokenizer
from virnucpro_pl.input.packed_batch import pack
from virnucpro_pl.input.protein_tokens import ProteinTokenizer
from virnucpro_pl.models.dnabert_s import alibi_slopes
from virnucpro_pl.models.dnabert_s_files import load_dnabert_s
from virnucpro_pl.models.esm2_files import load_esm2
from virnucpro_pl.models.operations import Operations
from virnucpro_pl.models.pooling import pool
from virnucpro_pl.stability import check_numerical_stability

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
NAME = "esm2_t12_35M_UR50D"
BUDGET = 32_768


def draw(lengths, letters, seed=0):
    """Sequences that differ in composition, as real ones do."""
    generator = np.random.default_rng(seed)
    return [
        generator.choice(list(letters), n, p=generator.dirichlet([0.5] * len(letters)))
        .astype(np.uint8)
        .tobytes()
        for n in lengths
    ]


def proteins(lengths, seed=0):
    return draw(lengths, b"LAGVSERTIDPKQNFYMHWC", seed)


def batch_of(sequences, tokenizer):
    ids = [str(i) for i in range(len(sequences))]
    return pack(np.arange(len(sequences)), ids, sequences, tokenizer).to(CUDA)


def load(kind, dtype, name=NAME):
    if kind == "esm2":
        encoder = load_esm2(name, None, device=CUDA, matrix_dtype=dtype)[0]
        return encoder, ProteinTokenizer()
    encoder = load_dnabert_s("published", None, device=CUDA, matrix_dtype=dtype)[0]
    return encoder, DNATokenizer()


def vectors(encoder, batch, backend, *, half, fused=False):
    with torch.inference_mode(), torch.autocast("cuda", torch.float16, enabled=half):
        hidden = encoder(batch.tokens, batch.cu_seqlens, batch.max_seqlen, backend, None, fused)
        return pool(hidden, batch.pool_tokens, batch.pool_offsets)


def centred(a, b):
    mean = a.mean(0)
    return F.cosine_similarity(a - mean, b - mean)


LENGTHS = {
    "short": range(1, 50),
    "medium": range(50, 201, 3),
    "long": range(201, 1001, 16),
}


@pytest.mark.parametrize("kind", ["esm2", "dnabert_s"])
@pytest.mark.parametrize("length", LENGTHS)
def test_fp16_every_length_close_to_fp32(kind, length, capsys):
    full, tokenizer = load(kind, torch.float32)
    half, _ = load(kind, torch.float16)
    lengths = [n * 5 if kind == "dnabert_s" else n for n in LENGTHS[length]]
    sequences = draw(lengths, b"ACGT") if kind == "dnabert_s" else proteins(lengths)
    batch = batch_of(sequences, tokenizer)
    exact = vectors(full, batch, "sdpa", half=False)
    backends = ["triton", "sdpa"] + (["varlen"] if kind == "esm2" else [])
    for backend in backends:
        found = vectors(half, batch, backend, half=True, fused=backend != "sdpa")
        plain, centre = F.cosine_similarity(exact, found), centred(exact, found)
        ratio = found.norm(dim=1) / exact.norm(dim=1)
        with capsys.disabled():
            print(
                f"\n{kind} {length} {backend}: plain {plain.min():.7f} centred {centre.min():.6f} "
                f"norm {ratio.min():.5f}..{ratio.max():.5f} "
                f"mean {exact.mean():.5f}/{found.mean():.5f} "
                f"std {exact.std():.5f}/{found.std():.5f}"
            )
        assert plain.min() > 0.99999
        assert centre.min() > 0.999
        assert (ratio - 1).abs().max() < 1e-3
        assert abs(found.mean() - exact.mean()) < 1e-3 * exact.std()
        assert abs(found.std() / exact.std() - 1) < 1e-3
        outliers = [(v.abs() > 3 * v.std()).sum().item() for v in (exact, found)]
        assert abs(outliers[0] - outliers[1]) <= 2 + 0.01 * outliers[0]


@pytest.mark.parametrize("kind", ["esm2", "dnabert_s"])
def test_fp32_packed_equals_alone(kind):
    encoder, tokenizer = load(kind, torch.float32)
    lengths = [1, 17, 300, 64, 700, 5]
    sequences = draw(lengths, b"ACGT") if kind == "dnabert_s" else proteins(lengths)
    together = vectors(encoder, batch_of(sequences, tokenizer), "sdpa", half=False)
    for sequence, packed in zip(sequences, together, strict=True):
        alone = vectors(encoder, batch_of([sequence], tokenizer), "sdpa", half=False)[0]
        # Twelve layers of FP32; TF32 would be off by 1e-3.
        torch.testing.assert_close(alone, packed, rtol=0, atol=5e-5)


@pytest.mark.parametrize("width", [16, 24, 32, 64, 128])
@pytest.mark.parametrize("biased", [False, True])
def test_packed_attention_any_length_equals_fp32(width, biased):
    from virnucpro_pl.models.triton_attention import packed_attention

    lengths = [1, 2, 63, 64, 65, 127, 128, 129, 168, 700, 1025]
    heads = 12
    cu = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device=CUDA)
    qkv = torch.randn(sum(lengths) + 50, 3, heads, width, device=CUDA, dtype=torch.float16)
    slopes = alibi_slopes(heads).to(CUDA) if biased else None
    q, k, v = qkv.unbind(1)
    found = packed_attention(q, k, v, cu, max(lengths), slopes)
    for start, stop in zip(cu[:-1].tolist(), cu[1:].tolist(), strict=True):
        x, y, z = (t[start:stop].float().transpose(0, 1) for t in (q, k, v))
        scores = x @ y.transpose(1, 2) * width**-0.5
        if biased:
            place = torch.arange(stop - start, device=CUDA)
            scores -= slopes[:, None, None] * (place[:, None] - place).abs()
        expected = (scores.softmax(-1) @ z).transpose(0, 1)
        torch.testing.assert_close(found[start:stop].float(), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("width", [16, 24, 32, 64, 128])
@pytest.mark.parametrize("biased", [False, True])
def test_packed_attention_long_neighbour_changes_no_bit(biased, width):
    from virnucpro_pl.models.triton_attention import packed_attention

    lengths = [168, 90, 250, 2000]  # blocks of 64 queries without the last one, of 128 with it
    slopes = alibi_slopes(12).to(CUDA) if biased else None
    cu = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device=CUDA)
    q, k, v = torch.randn(sum(lengths), 3, 12, width, device=CUDA, dtype=torch.float16).unbind(1)
    short = sum(lengths[:3])
    together = packed_attention(q, k, v, cu, 2000, slopes)[:short]
    alone = packed_attention(q[:short], k[:short], v[:short], cu[:4], 250, slopes)
    assert torch.equal(together, alone)


def test_packed_attention_nan_of_a_neighbour_stays_there():
    from virnucpro_pl.models.triton_attention import packed_attention

    cu = torch.tensor([0, 70, 200, 270], dtype=torch.int32, device=CUDA)
    qkv = torch.randn(270, 3, 4, 64, device=CUDA, dtype=torch.float16)
    before = packed_attention(*qkv.unbind(1), cu, 130)
    qkv[70:200] = torch.nan
    after = packed_attention(*qkv.unbind(1), cu, 130)
    assert torch.equal(before[:70], after[:70])
    assert torch.equal(before[200:], after[200:])


@pytest.mark.parametrize("kind", ["esm2", "dnabert_s"])
def test_kernels_first_pack_again_bit_identical_and_near_torch(kind):
    encoder, tokenizer = load(kind, torch.float16)
    letters = b"ACGT" if kind == "dnabert_s" else b"LAGVSERTIDPKQNFYMHWC"
    one = batch_of(draw([300, 20, 166, 80] * 12, letters, 1), tokenizer)
    two = batch_of(draw([90, 700, 3] * 9, letters, 2), tokenizer)
    plain = vectors(encoder, one, "triton", half=True)
    first = vectors(encoder, one, "triton", half=True, fused=True)
    vectors(encoder, two, "triton", half=True, fused=True)
    assert torch.equal(vectors(encoder, one, "triton", half=True, fused=True), first)
    assert centred(plain, first).min() > 0.9999


@pytest.mark.parametrize(("width", "out"), [(320, 1280), (480, 1920), (2560, 10_240)])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 777, 16_385])
def test_product_with_its_activation_equals_fp32(tokens, dtype, gated, width, out):
    from virnucpro_pl.models.triton_gelu import gated_gelu, gelu_in_place
    from virnucpro_pl.models.triton_linear import gated_linear, linear_gelu

    linear = torch.nn.Linear(width, out, bias=not gated, device=CUDA).to(dtype)
    x = torch.randn(tokens, width, device=CUDA, dtype=dtype)
    with torch.inference_mode():
        if gated:
            one, two = gated_linear(x, linear), gated_gelu(linear(x))
        else:
            one, two = linear_gelu(x, linear), gelu_in_place(linear(x))
        plain = Operations().gated_linear if gated else Operations().linear_gelu
        exact = plain(x.float(), linear.float())
    for found in (one, two):
        assert found.dtype == dtype
        assert (found.float() - exact).norm() / exact.norm() < torch.finfo(dtype).eps


@pytest.mark.parametrize("kind", ["esm2", "dnabert_s"])
def test_sequence_other_neighbours_same_vector_in_fp16(kind):
    encoder, tokenizer = load(kind, torch.float16)
    letters = b"ACGT" if kind == "dnabert_s" else b"LAGVSERTIDPKQNFYMHWC"
    sequences = draw([100] * 40, letters, 3)
    before = vectors(encoder, batch_of(sequences, tokenizer), "triton", half=True)
    others = [sequences[0], *draw([100] * 39, letters, 4)]
    after = vectors(encoder, batch_of(others, tokenizer), "triton", half=True)
    assert centred(before, before.roll(1, 0)).abs().max() < 0.9  # the sequences do differ
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=2e-3)


@pytest.mark.parametrize("width", [320, 480, 640, 1280, 2560, 5120])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_norm_of_a_sum_equals_torch(width, dtype):
    from virnucpro_pl.models.triton_norm import add_then_norm, norm_of_sum

    x = (torch.randn(77, width, device=CUDA) * 30 + 5).to(dtype)
    delta = torch.randn(77, width, device=CUDA, dtype=torch.float16)
    norm = torch.nn.LayerNorm(width, device=CUDA)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    with torch.inference_mode():
        total, normed = add_then_norm(x, delta, norm)
        exact = x.float() + delta.float()
        assert torch.equal(total, exact.to(dtype))
        assert normed.dtype == torch.float16
        right = norm(total.float())
        torch.testing.assert_close(normed.float(), right, rtol=2**-10, atol=1e-6)
        kept, normed = norm_of_sum(x, delta, norm)
        assert torch.equal(kept.half(), normed)
        torch.testing.assert_close(normed.float(), norm(exact), rtol=2**-10, atol=1e-5)


@pytest.mark.parametrize(("heads", "width"), [(20, 16), (20, 24), (20, 64), (40, 128)])
def test_rotation_equals_torch(heads, width):
    from virnucpro_pl.models.triton_rotary import rotate_in_place

    qkv = torch.randn(1001, 3, heads, width, device=CUDA, dtype=torch.float16)
    angle = torch.randn(1001, width // 2, device=CUDA)
    expected = Operations().rotate(qkv.clone(), angle.cos(), angle.sin())
    rotate_in_place(qkv, angle.cos(), angle.sin())
    for found, right in zip(qkv.unbind(1), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=2**-10, atol=1e-6)


@pytest.fixture
def count_waits(monkeypatch):
    """Count device synchronisations: those that torch knows, and every explicit wait."""

    def count(step):
        explicit = []

        def counted(name, original):
            def wait(*args, **kwargs):
                explicit.append(name)
                return original(*args, **kwargs)

            return wait

        for owner, name in (
            (torch.cuda, "synchronize"),
            (torch.cuda.Event, "synchronize"),
            (torch.cuda.Stream, "synchronize"),
        ):
            monkeypatch.setattr(owner, name, counted(name, getattr(owner, name)))
        torch.cuda.synchronize()
        explicit.clear()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(w.message) for w in caught) + len(explicit)

    return count


def embedder_of(kind):
    module = (
        ESM2Embedder(NAME, weights="random")
        if kind == "esm2"
        else DNABERTSEmbedder(weights="random")
    )
    module.encoder, _ = module.load_encoder(None, CUDA, torch.float16)
    module.attention_used = "triton"
    return module


@pytest.mark.parametrize("kind", ["esm2", "dnabert_s"])
def test_predict_step_healthy_data_one_wait(kind, count_waits):
    module = embedder_of(kind)
    letters = b"ACGT" if kind == "dnabert_s" else b"LAGVSERTIDPKQNFYMHWC"
    batch = batch_of(draw([300, 20, 166], letters), module.tokenizer)
    with torch.inference_mode(), torch.autocast("cuda", torch.float16):
        module.predict_step(batch)  # kernels are built at the first call
        assert count_waits(lambda: module.predict_step(batch)) <= 1
        ahead = batch._replace(following=batch_of(draw([90, 400], letters), module.tokenizer))
        assert count_waits(lambda: module.predict_step(ahead)) <= 1
        assert module._ahead is not None
        assert count_waits(lambda: module.predict_step(ahead.following)) <= 1


def test_predict_step_of_virnucpro_healthy_data_one_wait(count_waits):
    from virnucpro_pl import VirNucPro
    from virnucpro_pl.input.orf_batch import OrfBatch
    from virnucpro_pl.models.classifier import load_classifier

    esm2, dnabert_s = embedder_of("esm2"), embedder_of("dnabert_s")
    module = VirNucPro(esm2, dnabert_s, "random")
    module.classifier = load_classifier("random", esm2.width + dnabert_s.width).to(CUDA)
    batch = OrfBatch(
        batch_of(proteins([166, 90]), esm2.tokenizer),
        batch_of(draw([500, 271], b"ACGT"), dnabert_s.tokenizer),
    )
    with torch.inference_mode(), torch.autocast("cuda", torch.float16):
        module.predict_step(batch)
        assert count_waits(lambda: module.predict_step(batch)) <= 1


def test_check_large_tensor_under_a_millisecond(capsys):
    hidden = torch.randn(16_384, 2560, device=CUDA, dtype=torch.float16)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    for _ in range(20):
        begin.record()
        check_numerical_stability(hidden)
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    with capsys.disabled():
        print(f"\ncheck: {np.median(times):.3f} ms")
    assert np.median(times) < 1


TF32_ON = {
    "old": "torch.backends.cuda.matmul.allow_tf32 = True; torch.backends.cudnn.allow_tf32 = True",
    "new": "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "everywhere": "torch.backends.fp32_precision = 'tf32'",
    "setter": "torch.set_float32_matmul_precision('medium')",
}


@pytest.mark.parametrize("api", TF32_ON)
def test_fp32_switch_tf32_turned_on_by_others_matches_cpu(api, tmp_path):
    fasta = tmp_path / "x.faa"
    sequences = proteins([1, 20, 166, 300, 90, 410, 33])
    fasta.write_text("".join(f">{i}\n{s.decode()}\n" for i, s in enumerate(sequences)))
    script = f"""
import torch
from lightning.pytorch import Trainer
from virnucpro_pl import ESM2Embedder, SequenceDataModule
{TF32_ON[api]}
def run(accelerator, attention):
    trainer = Trainer(accelerator=accelerator, devices=1, logger=False, enable_progress_bar=False,
                      enable_checkpointing=False, enable_model_summary=False)
    out = trainer.predict(ESM2Embedder("esm2_t6_8M_UR50D", weights="random", attention=attention),
                          SequenceDataModule({str(fasta)!r}, tokens_per_batch=400, num_workers=0))
    assert trainer.precision == "32-true"
    return torch.cat([o.vectors for o in out])
expected = run("cpu", "sdpa")
for attention in ("auto", "sdpa"):
    found = run("cuda", attention)
    print((found - expected).abs().max().item())
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)
"""
    result = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(VIRNUCPRO_DISABLE_FP16="1"),
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]


def environment(**more):
    return {**os.environ, **more}


def predict(weights, fasta, out, *more, **env):
    words = ["--config", "esm2.yaml", "--model.weights", str(weights), "--data.path", str(fasta),
             "--writer.path", str(out), "--data.num_workers", "0", *more]  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "virnucpro_pl", "predict", *words],
        env=environment(**env), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_overflow_real_fp16_exits_3_and_fp32_succeeds(reference, save_published, tmp_path):
    state = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    state["layers.1.fc2.weight"] *= 1e6  # an activation of some 1e6 passes 65,504 under autocast
    weights = save_published(state, tmp_path / "large.pt")
    fasta = tmp_path / "x.faa"
    fasta.write_text(
        "".join(f">p{i}\n{s.decode()}\n" for i, s in enumerate(proteins([30, 166, 9])))
    )
    failed = predict(weights, fasta, tmp_path / "a.h5")
    assert failed.returncode == 3, failed.stderr[-3000:]
    assert all(f"p{i}" in failed.stderr for i in range(3))
    assert "VIRNUCPRO_DISABLE_FP16=1" in failed.stderr
    assert not (tmp_path / "a.h5").exists()
    passed = predict(weights, fasta, tmp_path / "b.h5", VIRNUCPRO_DISABLE_FP16="1")
    assert passed.returncode == 0, passed.stderr[-3000:]
    on_cpu = predict(weights, fasta, tmp_path / "c.h5", VIRNUCPRO_DISABLE_FP16="1",
                     CUDA_VISIBLE_DEVICES="")  # fmt: skip
    assert on_cpu.returncode == 0, on_cpu.stderr[-3000:]
    with h5py.File(tmp_path / "b.h5") as b, h5py.File(tmp_path / "c.h5") as c:
        assert b.attrs["precision"] == "32-true"
        found, expected = b["embeddings"][()], c["embeddings"][()]
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    again = predict(weights, fasta, tmp_path / "d.h5", "--model.on_instability", "fp32")
    assert again.returncode == 0, again.stderr[-3000:]
    with h5py.File(tmp_path / "d.h5") as d:
        assert (d.attrs["precision"], d["recomputed"][()].tolist()) == ("16-mixed", [0, 1, 2])
        np.testing.assert_allclose(d["embeddings"][()], expected, rtol=0, atol=1e-5)


CRAMPED = """
import sys
import torch
from lightning.pytorch import Trainer
from virnucpro_pl import ESM2Embedder, HDF5Writer, SequenceDataModule
if sys.argv[3] == "cramped":
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((1 << 30) / total)  # 1 GiB
trainer = Trainer(accelerator="gpu", devices=1, logger=False, enable_progress_bar=False,
                  enable_checkpointing=False, enable_model_summary=False,
                  callbacks=[HDF5Writer(sys.argv[2])])
data = SequenceDataModule(sys.argv[1], tokens_per_batch=262_144, num_workers=0)
trainer.predict(ESM2Embedder("esm2_t12_35M_UR50D", weights="random"), data)
"""


def test_out_of_memory_real_one_halves_packs_and_loses_nothing(tmp_path):
    fasta = tmp_path / "x.faa"
    fasta.write_text("".join(f">{i}\n{s.decode()}\n" for i, s in enumerate(proteins([166] * 4000))))
    for name in ("cramped", "roomy"):
        result = subprocess.run(
            [sys.executable, "-c", CRAMPED, str(fasta), str(tmp_path / f"{name}.h5"), name],
            env=environment(), capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr[-3000:]
        assert ("from here on packs have at most" in result.stderr) == (name == "cramped")
    with h5py.File(tmp_path / "cramped.h5") as cramped, h5py.File(tmp_path / "roomy.h5") as roomy:
        assert cramped["failed"][()].tolist() == []
        assert (cramped["sequence_ids"][()] == roomy["sequence_ids"][()]).all()
        np.testing.assert_allclose(cramped["embeddings"], roomy["embeddings"], rtol=0, atol=0.02)


OLD_CARD = """
import sys
import torch
from lightning.pytorch import Trainer
from virnucpro_pl import (
    ContigDataModule, DNABERTSEmbedder, ESM2Embedder, HDF5Writer, SequenceDataModule, VirNucPro
)
from virnucpro_pl.models import attention

def refuse(*arguments, **options):
    raise AssertionError("compiled on a card that cannot run it")

attention.find_card = lambda device: attention.Card("Tesla T4", (7, 5))
torch.compile = refuse
total = torch.cuda.get_device_properties(0).total_memory
torch.cuda.set_per_process_memory_fraction((15 << 30) / total)  # a T4 has so much of 16 GB
kind, name, path, fp16 = sys.argv[1:]
esm2 = ESM2Embedder(name, weights="random", enable_fp16=fp16 == "half", compile=True)
if kind == "virnucpro":
    dnabert_s = DNABERTSEmbedder(weights="random", enable_fp16=fp16 == "half", compile=True)
    model, data = VirNucPro(esm2, dnabert_s, "random"), ContigDataModule(path, num_workers=2)
else:
    model, data = esm2, SequenceDataModule(path, num_workers=2)
trainer = Trainer(accelerator="gpu", devices=1, logger=False, enable_progress_bar=False,
                  enable_checkpointing=False, enable_model_summary=False)
batches = trainer.predict(model, data)
assert trainer.precision == ("16-mixed" if fp16 == "half" else "32-true")
assert esm2.attention_used == "sdpa"
assert not [m for m in sys.modules if m.startswith("virnucpro_pl.models.triton_")]
assert esm2._budget is None  # no pack was too large
print("reserved", torch.cuda.max_memory_reserved() / 2**30)
vectors = [b.esm2 if kind == "virnucpro" else b.vectors for b in batches]
torch.save(torch.cat(vectors), f"{path}.{fp16}.pt")
"""


def on_an_old_card(kind, name, path, precision):
    """Run as on a Tesla T4; GiB that were reserved, and the vectors of the proteins."""
    result = subprocess.run(
        [sys.executable, "-c", OLD_CARD, kind, name, str(path), precision],
        env=environment(), capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    reserved = float(result.stdout.split("reserved ")[1].split()[0])
    return reserved, torch.load(f"{path}.{precision}.pt")


def contigs(count):
    """Contigs of 500 bases, each with a frame that is open."""
    codons = [c for a in "ACGT" for b in "ACGT" for d in "ACGT"
              if (c := a + b + d) not in ("TAA", "TAG", "TGA")]  # fmt: skip
    generator = np.random.default_rng(0)
    return ["".join([*generator.choice(codons, 166), "AC"]) for _ in range(count)]


@pytest.mark.parametrize("kind", ["esm2", "virnucpro"])
def test_old_card_fp16_without_packed_kernels_is_near_fp32(kind, tmp_path):
    path = tmp_path / "x.fa"
    sequences = [s.decode() for s in proteins(range(1, 1000, 9))] if kind == "esm2" else contigs(60)
    path.write_text("".join(f">{i}\n{s}\n" for i, s in enumerate(sequences)))
    _, half = on_an_old_card(kind, NAME, path, "half")
    _, full = on_an_old_card(kind, NAME, path, "full")
    assert centred(full, half).min() > 0.999


def test_old_card_3b_with_the_default_budget_fits_in_16_gb(tmp_path, capsys):
    path = tmp_path / "x.fna"
    path.write_text("".join(f">{i}\n{s}\n" for i, s in enumerate(contigs(400))))
    reserved, vectors = on_an_old_card("virnucpro", "esm2_t36_3B_UR50D", path, "half")
    with capsys.disabled():
        print(f"\n3B and DNABERT-S, default budget, sdpa: {reserved:.2f} GiB reserved")
    assert reserved < 15
    assert vectors.isfinite().all()


def test_packed_attention_asked_for_on_an_old_card_exits_2(tmp_path):
    (tmp_path / "x.faa").write_text(">a\nMKVLA\n")
    script = """
import sys
from virnucpro_pl.cli.main import main
from virnucpro_pl.models import attention
attention.find_card = lambda device: attention.Card("Tesla T4", (7, 5))
main(sys.argv[1:])
"""
    words = ["predict", "--config", "esm2.yaml", "--model.name", "esm2_t6_8M_UR50D", "--data.path",
             "x.faa", "--model.weights", "random", "--writer.path", "out.h5"]  # fmt: skip
    for asked in ("triton", "varlen"):
        result = subprocess.run(
            [sys.executable, "-c", script, *words, "--model.attention", asked],
            env=environment(), capture_output=True, text=True, timeout=300, check=False,
            cwd=tmp_path,
        )  # fmt: skip
        assert result.returncode == 2, result.stderr[-3000:]
        assert "Tesla T4 has compute capability 7.5" in result.stderr
        assert "Traceback" not in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["x.faa"]


def test_first_line_names_the_card(tmp_path):
    (tmp_path / "x.faa").write_text(">a\nMKVLA\n")
    ended = predict("random", tmp_path / "x.faa", tmp_path / "out.h5",
                    "--model.name", "esm2_t6_8M_UR50D")  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    first = ended.stderr.splitlines()[0]
    assert f"on 1 x {torch.cuda.get_device_name(0)}, 1 rank, precision 16-mixed" in first


def test_layer_norm_very_large_values_under_autocast_finite():
    norm = torch.nn.LayerNorm(2560, device=CUDA)
    x = torch.randn(64, 2560, device=CUDA) * 1e6
    with torch.autocast("cuda", torch.float16):
        out = norm(x)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, norm(x))


def test_peak_memory_fp16_below_fp32(capsys):
    peaks = {}
    for dtype, half in ((torch.float32, False), (torch.float16, True)):
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        of_others = torch.cuda.memory_allocated()
        encoder, tokenizer = load("esm2", dtype, "esm2_t33_650M_UR50D")
        batch = batch_of(proteins([166] * 97), tokenizer)
        began = time.perf_counter()
        vectors(encoder, batch, "triton" if half else "sdpa", half=half)
        torch.cuda.synchronize()
        peaks[half] = (torch.cuda.max_memory_allocated() - of_others) / 2**30
        with capsys.disabled():
            print(f"\n650M, {dtype}: {peaks[half]:.2f} GiB, {time.perf_counter() - began:.2f} s")
        del encoder
    assert peaks[True] < 0.6 * peaks[False]


def test_vectors_end_to_end_16_mixed_stored_as_fp32(tmp_path):
    from lightning.pytorch import Trainer

    fasta = tmp_path / "x.faa"
    fasta.write_text("".join(f">{i}\n{s.decode()}\n" for i, s in enumerate(proteins([50] * 20))))
    trainer = Trainer(
        accelerator="gpu", devices=1, logger=False, enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False, callbacks=[PrecisionFromEnv()],
    )  # fmt: skip
    module = ESM2Embedder("esm2_t6_8M_UR50D", weights="random")
    out = trainer.predict(module, SequenceDataModule(fasta, tokens_per_batch=300, num_workers=1))
    assert trainer.precision == "16-mixed"
    assert module.attention_used == "triton"
    assert module.encoder.layers[0].fc1.weight.dtype == torch.float16
    assert torch.cat([o.rows for o in out]).tolist() == list(range(20))
    assert all(o.vectors.dtype == torch.float32 for o in out)
