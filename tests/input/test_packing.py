import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virnucpro_pl.input.packing import plan_packs


@pytest.mark.parametrize(
    ("lengths", "budget", "packs"),
    [
        ([], 10, []),
        ([3], 10, [(0, 1)]),
        ([3, 3], 10, [(0, 2)]),
        ([3, 4], 10, [(0, 1), (1, 2)]),
        ([3, 3, 1, 1, 1, 9], 10, [(0, 2), (2, 5), (5, 6)]),
        ([100, 1, 100, 100, 1, 1], 10, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 6)]),
        ([8, 8], 10, [(0, 1), (1, 2)]),
        ([1, 1, 1], 1, [(0, 1), (1, 2), (2, 3)]),
        ([0, 0, 0], 4, [(0, 2), (2, 3)]),
    ],
)
def test_packs_with_bos_and_eos_counted_as_by_hand(lengths, budget, packs):
    assert plan_packs(lengths, budget) == [range(*pack) for pack in packs]


def test_packs_of_estimates_that_are_no_whole_numbers_as_by_hand():
    assert plan_packs([1.5, 1.5, 1.5, 1.25, 9.75, 0.5], 5, specials=1) == [
        *(range(2), range(2, 4), range(4, 5), range(5, 6)),
    ]


def test_packs_without_special_tokens_as_by_hand():
    assert plan_packs([3, 4, 3, 5, 5, 5], 10, specials=0) == [range(3), range(3, 5), range(5, 6)]


def test_packs_of_what_else_is_bounded_as_by_hand():
    besides = [([0, 3, 0, 0, 5, 0], 3), ([1, 1, 1, 1, 0, 0.5], 2)]
    found = plan_packs([2, 2, 2, 2, 2, 9], 10, specials=0, besides=besides)
    assert found == [range(2), range(2, 4), range(4, 5), range(5, 6)]


@pytest.mark.parametrize("budget", [0, -1])
def test_packs_with_a_budget_below_one_value_error(budget):
    with pytest.raises(ValueError, match="at least one token"):
        plan_packs([1], budget)


@settings(max_examples=500, derandomize=True, deadline=None, database=None)
@given(
    lengths=st.lists(st.one_of(st.integers(0, 40), st.integers(0, 2000)), max_size=200),
    budget=st.integers(1, 500),
    specials=st.integers(0, 2),
)
def test_packs_every_index_once_in_order_within_the_budget(lengths, budget, specials):
    packs = plan_packs(lengths, budget, specials)
    assert [i for pack in packs for i in pack] == list(range(len(lengths)))
    tokens = [sum(lengths[i] + specials for i in pack) for pack in packs]
    for pack, used in zip(packs, tokens, strict=True):
        assert used <= budget or len(pack) == 1
    for used, following in zip(tokens, packs[1:], strict=False):  # no pack could take one more
        assert used + lengths[following[0]] + specials > budget
    assert plan_packs(np.array(lengths, np.int32), budget, specials) == packs
    assert plan_packs(tuple(lengths), budget, specials) == packs


def test_packs_of_a_million_records_planned_beyond_int32():
    lengths = np.full(1_000_000, 5000, np.int32)
    packs = plan_packs(lengths, 16_384)
    assert len(packs) == 333_334
    assert packs[-1] == range(999_999, 1_000_000)
