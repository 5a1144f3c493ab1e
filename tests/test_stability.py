import pickle

import pytest
import torch

from virnucpro_pl import NumericalInstabilityError, check_numerical_stability
from virnucpro_pl.stability import are_finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(3, 5), (7,), (0, 4), ()])
def test_check_clean_tensor_returns_none(shape, dtype):
    assert check_numerical_stability(torch.ones(shape, dtype=dtype)) is None


def test_check_largest_finite_numbers_pass():
    for dtype in (torch.float16, torch.float32):
        largest = torch.finfo(dtype).max
        check_numerical_stability(torch.tensor([largest, -largest], dtype=dtype))


def test_check_nan_is_counted():
    with pytest.raises(NumericalInstabilityError) as caught:
        check_numerical_stability(torch.tensor([1.0, torch.nan, 3.0]), "layer 3")
    assert (caught.value.nan_count, caught.value.inf_count) == (1, 0)
    expected = "Numerical instability in layer 3: NaN=1, Inf=0, valid range=[1.00e+00, 3.00e+00]. "
    assert str(caught.value).startswith(expected)


def test_check_both_infinities_are_counted():
    with pytest.raises(NumericalInstabilityError, match="NaN=0, Inf=2") as caught:
        check_numerical_stability(torch.tensor([torch.inf, 2.0, -torch.inf]))
    assert caught.value.inf_count == 2


def test_check_nan_and_inf_are_both_counted():
    embeddings = torch.zeros(4, 4)
    embeddings[0] = torch.nan
    embeddings[1, :2] = torch.inf
    with pytest.raises(NumericalInstabilityError, match="in embeddings: NaN=4, Inf=2"):
        check_numerical_stability(embeddings)


def test_check_nothing_finite_has_no_range():
    with pytest.raises(NumericalInstabilityError, match=r"valid range=\[nan, nan\]"):
        check_numerical_stability(torch.full((2,), torch.inf))


def test_check_half_message_names_switch():
    with pytest.raises(NumericalInstabilityError, match="VIRNUCPRO_DISABLE_FP16=1 to run in FP32"):
        check_numerical_stability(torch.tensor([torch.nan]).half())


def test_check_under_autocast_message_names_switch():
    # A LayerNorm under autocast comes out in FP32.
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(NumericalInstabilityError, match="VIRNUCPRO_DISABLE_FP16=1 to run in FP32"),
    ):
        check_numerical_stability(torch.tensor([torch.nan]))


def test_check_single_message_blames_weights_or_input():
    with pytest.raises(NumericalInstabilityError, match="weights or the input are") as caught:
        check_numerical_stability(torch.tensor([torch.nan]))
    assert "VIRNUCPRO_DISABLE_FP16=1 changes nothing" in str(caught.value)


def test_error_many_ids_lists_twenty_and_a_count():
    ids = [f"p{i}" for i in range(25)]
    error = NumericalInstabilityError("fault.", sequence_ids=ids)
    assert error.sequence_ids == ids
    assert "Sequences (25): p0, p1" in str(error)
    assert "p19 and 5 more" in str(error)


def test_error_pickled_is_the_same():
    error = NumericalInstabilityError("fault.", nan_count=2, inf_count=1, sequence_ids=["a", "b"])
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.sequence_ids, copy.nan_count, copy.inf_count) == (
        *(str(error), ["a", "b"], 2, 1),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_bad_element_is_found_wherever_it_is(dtype, value):
    fine = torch.randn(33, 65, generator=torch.Generator().manual_seed(0)).to(dtype)
    for place in (0, 1, 1000, fine.numel() - 1):
        bad = fine.clone()
        bad.view(-1)[place] = value
        assert not are_finite(fine.float(), bad)
        assert not are_finite(bad, torch.ones(0))
    assert are_finite(fine, fine.float(), torch.ones(0))


def test_dtypes_side_by_side_are_not_made_one():
    half, wide = torch.ones(2).half(), torch.tensor([-1e300, 1e300], dtype=torch.float64)
    assert are_finite(half, wide, torch.tensor([65_520]))
    assert not are_finite(half, wide, torch.tensor([torch.nan]))


@pytest.mark.parametrize("autocast", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_autocast_of_another_dtype_is_no_matter(autocast, dtype):
    with torch.autocast("cpu", autocast):
        check_numerical_stability(torch.ones(3, dtype=dtype))
        with pytest.raises(NumericalInstabilityError):
            check_numerical_stability(torch.tensor([1.0, torch.nan], dtype=dtype))
