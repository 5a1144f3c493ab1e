import time

import torch
from torch import nn

from virnucpro_pl.models.cpu_speed import count_parameters, estimate_pace
from virnucpro_pl.models.esm2 import ESM2, ESM2Config


def test_count_parameters_counts_weights_and_biases():
    assert count_parameters(nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5))) == 15 + 5 + 5 + 5


def test_estimate_pace_falls_with_the_number_of_layers():
    # One timed product stands for all of a network: of alike layers, four times as many are four
    # times as slow, but for the noise of another process.
    few, many = (nn.Sequential(*(nn.Linear(512, 512) for _ in range(n))) for n in (2, 64))
    ratios = sorted(estimate_pace(few) / estimate_pace(many) for _ in range(15))
    assert 8 < ratios[7] < 128


def test_estimate_pace_takes_the_dtype_of_the_weights_and_changes_nothing():
    network = ESM2(ESM2Config(2, 64, 4)).to(torch.bfloat16).requires_grad_(False)
    before = [parameter.clone() for parameter in network.parameters()]
    began = time.monotonic()
    assert estimate_pace(network) > 0
    assert time.monotonic() - began < 10
    after = network.parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
