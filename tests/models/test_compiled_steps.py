import pytest
import torch

from virnucpro_pl.models.compiled_steps import Steps


def double(x):
    return x + x


def square(x):
    return x * x


def negate(x):
    return -x


@pytest.mark.parametrize(
    ("tokens", "fill_to", "fill"),
    [(7, 7, 0), (7, 10, 3), (7, 14, 7), (7, 15, None), (7, 6, None), (7, 0, None)],
)
def test_choose_fills_what_is_half_full_at_least(tokens, fill_to, fill):
    steps = Steps(double, square, negate)
    steps.compile()
    pieces, rows = steps.choose(tokens, fill_to)
    assert rows == (fill or 0)
    assert (pieces == (double, square, negate)) == (fill is None)


def test_compiled_pieces_compute_the_same():
    steps = Steps(double, square, negate)
    x = torch.arange(8.0)
    steps.compile()
    pieces, _ = steps.choose(8, 8)
    for compiled, plain in zip(pieces, (double, square, negate), strict=True):
        assert compiled is not plain
        assert torch.equal(compiled(x), plain(x))


def test_pieces_that_nobody_compiled_are_plain():
    pieces, fill = Steps(double, square, negate).choose(8, 10)
    assert pieces == (double, square, negate)
    assert fill == 2
