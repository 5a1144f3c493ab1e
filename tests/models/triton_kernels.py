"""The Triton kernels interpreted on a CPU; `test_triton.py` runs them in a process of its own.

Attention in BF16 is for GPU tests: of such numbers the interpreter multiplies the bits. It also
cuts them off where it ought to round.
"""

import pytest
import torch

from virnucpro_pl.models import dnabert_s, esm2
from virnucpro_pl.models.triton_attention import packed_attention
from virnucpro_pl.models.triton_norm import add_then_norm

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


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_add_then_norm_equals_torch(width, dtype):
    half = torch.float16 if dtype == torch.float32 else dtype
    generator = torch.Generator().manual_seed(width)
    x = (torch.randn(7, width, generator=generator) * 30 + 5).to(dtype)
    delta = torch.randn(7, width, generator=generator).to(half)
    norm = torch.nn.LayerNorm(width).requires_grad_(False)
    for parameter in norm.parameters():
        parameter.normal_(generator=generator)
    total, normed = add_then_norm(x, delta, norm)
    assert (total.dtype, normed.dtype) == (dtype, half)
    cut_off = torch.finfo(dtype).eps if dtype == torch.bfloat16 else 0
    expected = (x.float() + delta.float()).to(dtype)
    torch.testing.assert_close(total, expected, rtol=cut_off, atol=0)
    exact = norm(total.float())
    torch.testing.assert_close(normed.float(), exact, rtol=torch.finfo(half).eps, atol=1e-6)
