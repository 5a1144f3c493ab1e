"""The Triton kernels interpreted on a CPU; `test_triton.py` runs them in a process of its own.

Attention in BF16 is for GPU tests: of such numbers the interpreter multiplies the bits. It also
cuts them off where it ought to round.
"""

import pytest
import torch
import torch.nn.functional as F

from virnucpro_pl.models import dnabert_s, esm2
from virnucpro_pl.models.operations import Operations
from virnucpro_pl.models.triton_attention import packed_attention
from virnucpro_pl.models.triton_gelu import gated_gelu, gelu_in_place
from virnucpro_pl.models.triton_linear import gated_linear, linear_gelu
from virnucpro_pl.models.triton_norm import add_then_norm, norm_of_sum
from virnucpro_pl.models.triton_rotary import rotate_in_place

MODELS = [*esm2.SIZES.values(), *dnabert_s.SIZES.values()]
HEAD_WIDTHS = sorted({model.width // model.heads for model in MODELS})
WIDTHS = sorted({model.width for model in MODELS})


def plain_attention(qkv, lengths, slopes):
    """Attention (T, H, K) by the formula, one sequence after the other."""
    out = []
    for q, k, v in (part.unbind(1) for part in qkv.double().split(lengths)):
        scores = torch.einsum("ihk,jhk->hij", q, k) * q.shape[-1] ** -0.5
        if slopes is not None:
            place = torch.arange(len(q))
            scores -= slopes[:, None, None] * (place[:, None] - place).abs()
        out.append(torch.einsum("hij,jhk->ihk", scores.softmax(-1), v))
    return torch.cat(out)


@pytest.mark.parametrize(
    ("width", "dtype"), [*((w, torch.float16) for w in HEAD_WIDTHS), (24, torch.float32)]
)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("heads", "lengths"),
    [(2, [1, 65, 2, 168, 63, 64, 1]), (1, [1, 700, 129])],
    ids=["blocks of 64 queries", "blocks of 128 queries"],
)
def test_packed_attention_equals_the_formula(heads, lengths, biased, width, dtype):
    generator = torch.Generator().manual_seed(width)
    qkv = torch.randn(sum(lengths), 3, heads, width, generator=generator).to(dtype)
    slopes = dnabert_s.alibi_slopes(heads) if biased else None
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    found = packed_attention(*qkv.unbind(1), cu_seqlens, max(lengths), slopes)
    assert found.dtype == dtype
    expected = plain_attention(qkv, lengths, slopes)
    most = 2e-3 if dtype == torch.float16 else 1e-5
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=most)


def test_packed_attention_nan_of_a_neighbour_stays_there():
    lengths = [70, 130, 33]
    qkv = torch.randn(sum(lengths), 3, 2, 16, generator=torch.Generator().manual_seed(0)).half()
    qkv[70:200] = torch.nan
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    found = packed_attention(*qkv.unbind(1), cu_seqlens, 130)
    assert found[70:200].isnan().all()
    assert found[:70].isfinite().all()
    assert found[200:].isfinite().all()


def layer_norm(width, generator):
    norm = torch.nn.LayerNorm(width).requires_grad_(False)
    for parameter in norm.parameters():
        parameter.normal_(generator=generator)
    return norm


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kernel", [add_then_norm, norm_of_sum])
def test_norm_of_a_sum_equals_torch(width, dtype, kernel):
    half = torch.float16 if dtype == torch.float32 else dtype
    generator = torch.Generator().manual_seed(width)
    x = (torch.randn(7, width, generator=generator) * 30 + 5).to(dtype)
    delta = torch.randn(7, width, generator=generator).to(half)
    norm = layer_norm(width, generator)
    kept, normed = kernel(x, delta, norm)
    assert (kept.dtype, normed.dtype) == (dtype, half)
    total = x.float() + delta.float()
    if kernel is add_then_norm:
        cut_off = torch.finfo(dtype).eps if dtype == torch.bfloat16 else 0
        torch.testing.assert_close(kept, total.to(dtype), rtol=cut_off, atol=0)
        total = kept.float()
    else:
        most = max(torch.finfo(dtype).eps, 1e-6)
        torch.testing.assert_close(kept.float(), norm(total), rtol=most, atol=1e-6)
    torch.testing.assert_close(normed.float(), norm(total), rtol=torch.finfo(half).eps, atol=1e-6)


def halves():
    """All finite FP16 numbers."""
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(torch.float16)
    return every[every.isfinite()]


def test_gelu_every_half_is_as_exact_as_single_erf():
    x = halves()
    exact = F.gelu(x.double())
    size = x.double().abs().clamp(min=1e-4)
    assert ((gelu_in_place(x.float()).double() - exact).abs() / size).max() < 3e-7  # by erf 2.4e-7


def test_gelu_every_half_rounds_like_erf_but_for_ties():
    expected = F.gelu(halves().double()).half()
    found = gelu_in_place(halves())
    assert (found != expected).float().mean() < 0.01
    torch.testing.assert_close(found, expected, rtol=2**-10, atol=2**-21)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_gelu_what_is_not_finite_stays_so(value):
    assert not gelu_in_place(torch.tensor([value, 1.0])).isfinite()[0]


def test_gelu_large_values_stay_finite():
    large = torch.tensor([65504.0, -65504.0, 3e38, -3e38])
    assert gelu_in_place(large.clone()).tolist() == [65504.0, 0.0, large[2].item(), 0.0]


@pytest.mark.parametrize("inner", [1, 384, 1025])
def test_gated_gelu_equals_torch(inner):
    x = torch.randn(3, 2 * inner, generator=torch.Generator().manual_seed(inner))
    gate, value = x.double().chunk(2, dim=-1)
    expected = F.gelu(gate) * value
    torch.testing.assert_close(gated_gelu(x).double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("width", [8, 16, 24, 64])
@pytest.mark.parametrize(("tokens", "heads"), [(1, 1), (7, 3), (9, 20)])
def test_rotation_equals_torch_and_leaves_values_alone(tokens, heads, width):
    generator = torch.Generator().manual_seed(width)
    qkv = torch.randn(tokens, 3, heads, width, generator=generator)
    angle = torch.randn(tokens, width // 2, generator=generator)
    expected = Operations().rotate(qkv.clone(), angle.cos(), angle.sin())
    rotate_in_place(qkv, angle.cos(), angle.sin())
    for found, right in zip(qkv.unbind(1), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("tokens", "width", "out"), [(1, 8, 16), (130, 72, 272), (300, 320, 528)])
def test_product_with_its_activation_equals_torch(tokens, width, out, gated):
    generator = torch.Generator().manual_seed(tokens)
    linear = torch.nn.Linear(width, out, bias=not gated).requires_grad_(False)
    for parameter in linear.parameters():
        parameter.normal_(generator=generator).div_(width**0.5)
    x = torch.randn(tokens, width, generator=generator).half()
    linear.half()
    found = (gated_linear if gated else linear_gelu)(x, linear)
    assert found.dtype == torch.float16
    linear.double()
    plain = Operations().gated_linear if gated else Operations().linear_gelu
    torch.testing.assert_close(found.double(), plain(x.double(), linear), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("kind", ["esm2", "dnabert_s"])
@pytest.mark.parametrize("layer", [0, 1, None])
def test_networks_with_and_without_kernels_are_alike(kind, layer):
    torch.manual_seed(0)
    if kind == "esm2":
        network = esm2.ESM2(esm2.ESM2Config(2, 48, 3))
    else:
        network = dnabert_s.DNABERTS(dnabert_s.DNABERTSConfig(2, 48, 3, 64))
    for module in network.eval().requires_grad_(False).modules():
        if isinstance(module, torch.nn.Linear):
            module.half()
    tokens = torch.randint(4, 24, (60,))
    cu_seqlens = torch.tensor([0, 9, 10, 60], dtype=torch.int32)
    with torch.inference_mode(), torch.autocast("cpu", torch.float16):
        plain, fused = (network(tokens, cu_seqlens, 50, "sdpa", layer, f) for f in (False, True))
    assert fused.dtype == torch.float32
    torch.testing.assert_close(fused, plain, rtol=0, atol=0 if layer == 0 else 5e-3)
