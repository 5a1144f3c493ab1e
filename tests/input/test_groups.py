import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from virnucpro_pl.input import groups as module
from virnucpro_pl.input.groups import (
    COPY,
    FIRST,
    VARIANT,
    Sequences,
    find_first,
    groups_in,
    write_groups,
)
from virnucpro_pl.input.packing import plan_packs

quick = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
some_strings = st.lists(st.text("AB", min_size=1, max_size=3), max_size=40)


@pytest.fixture(params=["hash", "one hash for all", "two hashes"], autouse=True)
def hashes(request, monkeypatch):
    """Python's own hash, and some by which many strings that differ collide."""
    if request.param != "hash":
        divisor = 1 if request.param == "one hash for all" else 2
        monkeypatch.setattr(module, "hash", lambda s: len(s) % divisor, raising=False)


@pytest.fixture(params=[3, 1 << 16])
def block(request, monkeypatch):
    """Few rows, and letters, in memory at a time, and many."""
    monkeypatch.setattr(module, "_ROWS", request.param)
    monkeypatch.setattr(module, "_LETTERS", 2 * request.param)


def of(strings):
    letters = [s.encode() for s in strings]
    return Sequences(
        len(letters),
        lambda rows: np.array([len(letters[row]) for row in rows], np.int64),
        lambda rows: [letters[row] for row in rows],
    )


@quick
@given(strings=some_strings)
@pytest.mark.usefixtures("block")
def test_first_of_each_string_is_found_whatever_the_hash(strings):
    assert find_first(of(strings)).tolist() == [strings.index(s) for s in strings]
    rows = np.arange(len(strings))[::-2]
    some = [strings[row] for row in rows]
    assert find_first(of(strings), rows).tolist() == [some.index(s) for s in some]


@quick
@given(pairs=st.lists(st.tuples(st.text("AB", min_size=1, max_size=2), st.text("CD", max_size=1))))
@pytest.mark.usefixtures("block")
def test_groups_hold_every_row_once_beside_its_equals(tmp_path, pairs):
    first, second = [p for p, _ in pairs], [n for _, n in pairs]
    write_groups(tmp_path, of(first), of(second))
    groups = groups_in(tmp_path)
    assert (groups is None) == (len(set(first)) == len(first))
    if groups is None:
        return
    rows = groups.rows.tolist()
    assert sorted(rows) == list(range(len(pairs)))
    in_order = [first[row] for row in rows]
    assert list(dict.fromkeys(in_order)) == list(dict.fromkeys(first))
    assert sum(a != b for a, b in pairwise(in_order)) + 1 == len(set(first)) == groups.count(FIRST)
    assert groups.count(VARIANT) == len(set(pairs))
    for before, row, level in zip([None, *rows], rows, groups.level, strict=False):
        if before is None or first[before] != first[row]:
            assert level == FIRST
        else:
            assert level == (COPY if second[before] == second[row] else VARIANT)


def test_groups_by_hand(tmp_path):
    write_groups(tmp_path, of(["P", "Q", "P", "R", "Q", "P"]), of(["c", "d", "a", "d", "d", "c"]))
    groups = groups_in(tmp_path)
    assert groups.rows.tolist() == [0, 5, 2, 1, 4, 3]
    assert groups.level.tolist() == [FIRST, COPY, VARIANT, FIRST, COPY, FIRST]
    done = np.array([True, True, True, True, False, True])
    assert groups.whole(done).tolist() == [True, False, True, True, False, True]
    assert groups.whole(~done).tolist() == [False] * 6


def test_groups_that_a_rank_does_not_see_whole_are_refused(tmp_path):
    with pytest.raises(OSError, match=r"groups\.count"):
        groups_in(tmp_path)
    write_groups(tmp_path, of("AA"))
    (tmp_path / "groups.rows").write_bytes(b"")
    with pytest.raises(OSError, match=r"groups\.rows is not whole as this rank sees it"):
        groups_in(tmp_path)


def test_rows_without_equals_have_no_groups_and_replace_those_of_before(tmp_path):
    write_groups(tmp_path, of("AA"))
    assert groups_in(tmp_path).rows.tolist() == [0, 1]
    write_groups(tmp_path, of("AB"))
    assert groups_in(tmp_path) is None
    write_groups(tmp_path, of(""))
    assert groups_in(tmp_path) is None


def planned(groups, tokens, second, budget):
    """Pieces of each pack, as rows."""
    cost = np.asarray(tokens, float)
    other = np.asarray(second, float)

    def of_rows(rows):
        return other[rows]

    packs = groups.plan(cost, of_rows, budget)
    assert [place for pack in packs for place in pack] == list(range(len(cost)))
    pieces = [groups.cut(pack, of_rows, budget) for pack in packs]
    for pack, cut in zip(packs, pieces, strict=True):
        assert [place for piece in cut for place in piece] == list(pack)
    return [[groups.rows[piece.start : piece.stop].tolist() for piece in cut] for cut in pieces]


@quick
@given(
    pairs=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), min_size=1, max_size=60),
    budget=st.integers(1, 30),
    copies=st.integers(1, 6),
)
def test_packs_hold_whole_groups_within_the_budget(tmp_path, pairs, budget, copies):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "COPIES", copies)
        first, second = ["P" * (p + 1) for p, _ in pairs], ["N" * (n + 1) for _, n in pairs]
        write_groups(tmp_path, of(first), of(second))
        groups = groups_in(tmp_path)
        if groups is None:
            return
        tokens = [len(f) for f in first], [len(s) for s in second]
        found = planned(groups, *tokens, budget)
    packs = [[row for piece in pack for row in piece] for pack in found]
    assert sorted(row for rows in packs for row in rows) == list(range(len(pairs)))
    for string in set(first):
        assert sum(string in {first[row] for row in rows} for rows in packs) == 1
    for pieces, rows in zip(found, packs, strict=True):
        if len({first[row] for row in rows}) > 1:
            assert len(pieces) == 1
            assert sum(len(s) for s in {first[row] for row in rows}) <= budget
            if len({*zip(first, second, strict=True)}) > len({*first}):  # else as without copies
                assert sum(len(n) for _, n in {(first[row], second[row]) for row in rows}) <= budget
            assert len(rows) - len({first[row] for row in rows}) <= copies
        for piece in pieces:
            assert len(piece) <= max(copies + 1, len({first[row] for row in piece}) + copies)
        for variant in {second[row] for row in rows} if len(pieces) > 1 else ():
            holding = [{second[row] for row in piece} for piece in pieces]
            holding = [kinds for kinds in holding if variant in kinds]
            assert len(holding) == 1 or all(kinds == {variant} for kinds in holding)


def test_packs_of_distinct_rows_are_those_of_before_but_for_the_copies(tmp_path):
    lengths = np.random.default_rng(0).integers(1, 90, 500)
    strings = [f"{row:04}" for row in range(500)]
    rows = [*range(500), 0, 499]
    write_groups(tmp_path, of([strings[row] for row in rows]))
    found = planned(groups_in(tmp_path), lengths[rows], np.zeros(502), 200)
    expected = [list(pack) for pack in plan_packs(lengths, 200, specials=0)]
    expected[0].insert(1, 500)
    expected[-1].append(501)
    assert [row for [row] in found] == expected


def peak(work):
    """Bytes that a piece of work has in use at most beyond those of before."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("hashes", ["hash"], indirect=True)
@pytest.mark.parametrize("copies", [1, 2, 100])
def test_a_row_takes_less_than_20_bytes_to_find_its_group_and_to_plan(
    tmp_path, monkeypatch, copies
):
    monkeypatch.setattr(module, "_ROWS", 1 << 10)
    count = 200_000
    number = np.random.default_rng(0).permutation(count) // copies
    number[-1] = number[0]  # else without groups where all rows are distinct
    lengths = np.full(count, 8)

    def sequences(pattern):
        def some(rows):
            return [pattern % pair for pair in zip(number[rows].tolist(), rows % 3, strict=True)]

        return Sequences(count, lengths.take, some)

    first, second = sequences(b"%08d%.0s"), sequences(b"%08d.%d")
    assert peak(lambda: write_groups(tmp_path, first, second)) < 20 * count
    groups = groups_in(tmp_path)
    assert groups.count(FIRST) == len(np.unique(number)) < groups.count(VARIANT) + (copies == 1)
    tokens = lengths.astype(np.float64)
    alone = peak(lambda: plan_packs(tokens, 4000))
    assert peak(lambda: groups.plan(tokens, tokens.take, 4000)) < alone + 20 * count
