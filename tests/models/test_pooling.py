import torch

from virnucpro_pl.models.pooling import pool


def places(*pooled):
    offsets = torch.tensor([0, *[len(p) for p in pooled]]).cumsum(0)
    return torch.tensor([i for p in pooled for i in p]), offsets


def test_pool_margins_are_left_out():
    # <cls> A A <eos> | <cls> B <eos>
    hidden = torch.tensor([[100.0], [1], [3], [200], [300], [7], [400]])
    assert pool(hidden, *places([1, 2], [5])).tolist() == [[2.0], [7.0]]


def test_pool_half_states_are_summed_in_single():
    generator = torch.Generator().manual_seed(0)
    hidden = (torch.randn(5000, 8, generator=generator) + 3).half()
    exact = hidden.double().mean(0)
    pooled = pool(hidden, *places(range(5000)))
    assert pooled.dtype == torch.float32
    assert (pooled[0] - exact).abs().max() < 2e-6


def test_pool_under_autocast_stays_single():
    hidden = torch.full((3, 4), 1.00390625)  # not a bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        pooled = pool(hidden, *places([0, 1, 2]))
    assert torch.equal(pooled, hidden[:1])


def test_pool_nan_stays_in_its_sequence():
    hidden = torch.ones(9, 2)
    hidden[4, 1] = torch.nan
    pooled = pool(hidden, *places([0, 1], [3, 4, 5], [6, 7, 8]))
    assert pooled.isfinite().all(dim=1).tolist() == [True, False, True]
    assert pooled[2].tolist() == [1, 1]


def test_pool_nan_in_special_token_is_not_read():
    hidden = torch.ones(3, 2)
    hidden[0] = torch.nan
    assert pool(hidden, *places([1])).isfinite().all()
