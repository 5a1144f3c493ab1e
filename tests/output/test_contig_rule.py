"""The rule for contigs, each branch and each boundary worked out by hand."""

import math

import numpy as np
import pytest

from virnucpro_pl.output import contig_rule
from virnucpro_pl.output.contig_rule import (
    CALLS,
    TIERS,
    RuleCalls,
    as_written,
    call_by_rule,
    rounded,
)


def rule(*records: list[tuple[float, float]]) -> RuleCalls:
    """Call records of which each is the P(others) and P(virus) of its scored chunks."""
    owner = np.repeat(np.arange(len(records)), [len(chunks) for chunks in records])
    pairs = np.array([pair for chunks in records for pair in chunks]).reshape(-1, 2)
    return call_by_rule(owner, pairs[:, 0], pairs[:, 1], len(records))


def say(calls: RuleCalls) -> list[tuple[str, str]]:
    return [(CALLS[call], TIERS[tier]) for call, tier in zip(calls.call, calls.tier, strict=True)]


VIRAL, OTHERS, AMBIGUOUS = (0.125, 0.875), (0.875, 0.125), (0.75, 0.875)
LIKELY = (0.25, 0.75)  # delta 0.5, and not confident
TIE = (0.5, 0.5)


@pytest.mark.parametrize(
    ("chunks", "delta", "call", "tier"),
    [
        ([VIRAL] * 5, 0.75, "viral", "high"),
        ([VIRAL] * 4, 0.75, "viral", "low"),  # few chunks
        ([VIRAL, *[LIKELY] * 4], 0.5586, "viral", "moderate"),
        ([VIRAL, *[LIKELY] * 3], 0.5725, "viral", "low"),
        ([LIKELY] * 5, 0.5, "viral", "low"),  # none is confident
        ([LIKELY] * 4, 0.5, "viral", "review"),
        ([VIRAL, *[LIKELY] * 9], 0.5299, "viral", "moderate"),  # one of ten is enough
        ([VIRAL, *[LIKELY] * 10], 0.5273, "viral", "low"),  # one of eleven is not
        ([OTHERS] * 5, -0.75, "others", "high"),
        ([OTHERS] * 4, -0.75, "others", "low"),
        ([OTHERS, *[LIKELY[::-1]] * 4], -0.5586, "others", "moderate"),
        ([LIKELY[::-1]] * 5, -0.5, "others", "low"),
        ([LIKELY[::-1]] * 4, -0.5, "others", "review"),
        ([OTHERS, *[LIKELY[::-1]] * 9], -0.5299, "others", "moderate"),
        ([OTHERS, *[LIKELY[::-1]] * 10], -0.5273, "others", "low"),
        ([VIRAL, OTHERS] * 3, 0.0, "ambiguous", "review"),
        ([VIRAL, OTHERS], 0.0, "ambiguous", "review"),
        ([TIE] * 5, 0.0, "ambiguous", "review"),  # all weights are 0
        ([VIRAL, *[TIE] * 4], 0.75, "viral", "high"),  # a chunk of delta 0 has no weight
        ([AMBIGUOUS] * 5, 0.125, "ambiguous", "review"),
        ([], math.nan, "NA", "NA"),
    ],
)
def test_each_branch_by_hand(
    chunks: list[tuple[float, float]], delta: float, call: str, tier: str
) -> None:
    calls = rule(chunks)
    assert calls.weighted_delta.tolist() == pytest.approx([delta], abs=5e-5, nan_ok=True)
    assert say(calls) == [(call, tier)]


def test_weights_are_the_roots_of_delta() -> None:
    # (0.25 * 0.5 - 1 * 1 + 0 * 0) / (0.5 + 1 + 0)
    [delta] = rule([(0.5, 0.75), (1.0, 0.0), TIE]).weighted_delta
    assert delta == pytest.approx(-0.875 / 1.5)


@pytest.mark.parametrize(
    ("chunk", "counts"),
    [
        ((0.25, 0.875), (1, 0, 0)),
        ((0.25, 0.8), (0, 0, 0)),
        ((0.3, 0.875), (0, 0, 0)),
        ((0.875, 0.25), (0, 1, 0)),
        ((0.8, 0.25), (0, 0, 0)),
        ((0.875, 0.3), (0, 0, 0)),
        ((0.75, 0.75), (0, 0, 1)),
        ((0.7, 0.75), (0, 0, 0)),
        ((0.75, 0.7), (0, 0, 0)),
        ((0.29999998, 0.8000001), (1, 0, 0)),
        ((0.7000001, 0.7000001), (0, 0, 1)),
    ],
)
def test_boundaries_of_scores_are_outside(
    chunk: tuple[float, float], counts: tuple[int, int, int]
) -> None:
    calls = rule([chunk])
    assert (calls.n_confident_viral, calls.n_confident_others, calls.n_ambiguous) == counts


def test_ambiguous_chunks_are_not_in_the_proportions() -> None:
    # One confident chunk of eleven, of which one is ambiguous: one of ten.
    calls = rule([VIRAL, *[LIKELY] * 9, AMBIGUOUS], [AMBIGUOUS, OTHERS, *[LIKELY[::-1]] * 9])
    assert calls.viral_proportion.tolist() == [0.1, 0.0]
    assert calls.others_proportion.tolist() == [0.0, 0.1]
    assert say(calls) == [("viral", "moderate"), ("others", "moderate")]
    assert rule([AMBIGUOUS]).viral_proportion.tolist() == [0.0]


@pytest.mark.parametrize(
    ("delta", "expected"),
    [
        (0.3, ("ambiguous", "review")),
        (0.30001, ("viral", "moderate")),  # not rounded before it is compared
        (0.6, ("viral", "moderate")),
        (0.60001, ("viral", "high")),
        (-0.3, ("ambiguous", "review")),
        (-0.30001, ("others", "moderate")),
        (-0.6, ("others", "moderate")),
        (-0.60001, ("others", "high")),
    ],
)
def test_boundaries_of_the_weighted_delta_are_below(
    monkeypatch: pytest.MonkeyPatch, delta: float, expected: tuple[str, str]
) -> None:
    # No scores give all of these means exactly.
    monkeypatch.setattr(contig_rule, "_weighted_means", lambda *_: np.array([delta]))
    assert say(rule([VIRAL if delta > 0 else OTHERS] * 5)) == [expected]


def test_rounded_has_three_digits() -> None:
    assert rounded(np.array([0.12345, -0.75, 0.9996, np.nan])) == ["0.123", "-0.75", "1.0", "NA"]


@pytest.mark.parametrize("block", [1, 3, 1 << 20])
def test_scores_are_taken_as_they_are_written(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(contig_rule, "_BLOCK", block)
    scores = np.array([0.65, 0.8, 1, 0, 1.2e-05, 0.99884045, 1.17549435e-38], np.float32)
    assert as_written(scores).tolist() == [float(str(score)) for score in scores]
    assert as_written(scores)[:2].tolist() == [0.65, 0.8]
    assert len(as_written(scores[:0])) == 0


def test_chunk_on_the_boundary_is_called_as_its_row_reads() -> None:
    others, virus = map(as_written, np.array([[0.35], [0.65]], np.float32))
    assert virus - others > 0.3  # though float32 would give 0.29999998
    assert say(call_by_rule(np.array([0]), others, virus, 1)) == [("viral", "review")]


def test_records_do_not_mix_whatever_the_order_of_their_chunks() -> None:
    owner = np.array([3, 0, 3, 1, 0])
    pairs = np.array([VIRAL, OTHERS, LIKELY, TIE, OTHERS])
    calls = call_by_rule(owner, pairs[:, 0], pairs[:, 1], 5)
    alone = rule([OTHERS] * 2, [TIE], [], [VIRAL, LIKELY], [])
    for column, expected in zip(calls, alone, strict=True):
        np.testing.assert_allclose(column, expected)
    assert [call for call, _ in say(calls)] == ["others", "ambiguous", "NA", "viral", "NA"]
