import pytest
import torch
import torch.nn.functional as F

from virnucpro_pl.models.activation import gelu, gelu_by_formula


def halves():
    """All finite FP16 numbers."""
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(torch.float16)
    return every[every.isfinite()]


def test_gelu_outside_of_a_graph_is_torch():
    x = torch.linspace(-9, 9, 1001)
    assert torch.equal(gelu(x), F.gelu(x))


def test_formula_every_half_is_as_exact_as_single_erf():
    x = halves()
    exact = F.gelu(x.double())
    size = x.double().abs().clamp(min=1e-4)
    apart = ((gelu_by_formula(x.float()).double() - exact).abs() / size).max()
    assert apart < 3e-7  # by erf it is 2.4e-7


def test_formula_every_half_rounds_like_erf_but_for_ties():
    x = halves()
    found, expected = gelu_by_formula(x), F.gelu(x.double()).half()
    assert found.dtype == torch.float16
    assert (found != expected).float().mean() < 0.01
    torch.testing.assert_close(found, expected, rtol=2**-10, atol=2**-21)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_formula_what_is_not_finite_stays_so(value):
    assert not gelu_by_formula(torch.tensor([value, 1.0])).isfinite()[0]


def test_formula_large_values_stay_finite():
    large = torch.tensor([65504.0, -65504.0, 3e38, -3e38])
    assert gelu_by_formula(large).tolist() == [65504.0, 0.0, large[2].item(), 0.0]
