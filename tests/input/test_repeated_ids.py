"""Records with one id: refused, named as mates, or numbered."""

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from virnucpro_pl.errors import InputError
from virnucpro_pl.input import records, repeated_ids
from virnucpro_pl.input.alphabets import DNA
from virnucpro_pl.input.reader import read_records
from virnucpro_pl.input.repeated_ids import mate_number


@pytest.fixture
def named(tmp_path):
    """Read records with such headers, one file or several: the ids that they get."""

    def call(rule, *files, **options):
        paths = []
        for number, headers in enumerate(files):
            path = tmp_path / f"{number}.fa"
            path.write_text("".join(f">{header}\nACG\n" for header in headers))
            paths.append(path)
        call.store = read_records(paths, DNA, tmp_path, repeated_ids=rule, **options)
        return call.store.ids(np.arange(len(call.store)))

    return call


@pytest.fixture
def fault(named):
    """Read records that are refused: what is said, without the names of folders."""

    def call(rule, *files):
        with pytest.raises(InputError) as caught:
            named(rule, *files)
        return re.sub(r"\S*/(?=\d\.fa)", "", str(caught.value))

    return call


def test_pairs_of_two_files_named_as_mates(named):
    first, second = ["r1 1:N:0:A", "r2 1:N:0", "alone"], ["r2 2:N:0", "r1 2:N:0:A", "other"]
    assert named("mates", first, second) == ["r1/1", "r2/1", "alone", "r2/2", "r1/2", "other"]
    assert named.store.counts["repeated_ids_renamed"] == 4


def test_interleaved_pairs_named_as_mates(named):
    assert named("mates", ["a", "a", "b x", "b y", "c"]) == ["a/1", "a/2", "b/1", "b/2", "c"]


def test_nothing_repeated_nothing_changed(named):
    for rule in ("error", "mates", "number"):
        assert named(rule, ["a", "b/1", "b/2"]) == ["a", "b/1", "b/2"]
        renamed = named.store.counts.get("repeated_ids_renamed")
        assert renamed == (None if rule == "error" else 0)


def test_later_records_numbered_past_ids_that_there_are(named):
    ids = ["x", "x", "y", "x", "x_2", "x", "y", "x_1_1", "x_2"]
    assert named("number", ids) == [
        "x", "x_1", "y", "x_3", "x_2", "x_4", "y_1", "x_1_1", "x_2_1",
    ]  # fmt: skip
    assert named.store.counts["repeated_ids_renamed"] == 5


def test_third_record_of_an_id_is_no_pair(fault):
    message = fault("mates", ["a", "b", "a"], ["a", "b", "a", "c", "c", "c"])
    assert "The inputs have 2 faults:" in message
    assert "record 1 (a) of 1.fa: the id occurs 4 times, which is no pair" in message
    assert "record 6 (c) of 1.fa: the id occurs 3 times, which is no pair" in message
    assert "--data.repeated_ids number" in message.splitlines()[-1]


@pytest.mark.parametrize("mate", [1, 2])
def test_two_of_the_same_mate_refused_with_what_to_do(fault, mate):
    message = fault("mates", [f"a {mate}:N:0"], [f"a {mate}:N:0"])
    assert f"its header says that it is mate {mate}, as the other one's of its id does" in message
    assert "1 fault" in message
    assert message.splitlines()[-1].endswith("give the files of R1 and of R2, each once")


@pytest.mark.parametrize(
    "files", [(["a 2:N:0"], ["a 1:N:0"]), (["a"], ["a 1:N:0"]), (["a 2:Y:18:ACGT z"], ["a"])]
)
def test_mate_that_its_header_tells_is_named_so_in_any_order(named, files):
    assert named("mates", *files) == ["a/2", "a/1"]


def test_mate_is_told_behind_an_id_that_is_not_ascii(named):
    """Of the two bytes of its first letter one is a blank in Latin-1."""
    assert named("mates", ["\xe0x 2:N:0", "\xe0x 1:N:0"]) == ["\xe0x/2", "\xe0x/1"]


def test_mate_that_takes_the_id_of_another_refused(fault):
    message = fault("mates", ["x", "x/2", "x"])
    assert (
        "0.fa has 1 fault:\n  record 3 (x): as mate 2 it is named x/2, which is the id of record 2"
    ) in message


@pytest.mark.parametrize(
    ("header", "number"),
    [
        *(("r 1:N:0:ACGT", 1), ("r\t2:Y:18:0", 2), ("  r  1:N", 1), ("r 2:", 2), ("r", 0)),
        *(("", 0), ("r x 1:N:0", 0), ("r 12:N", 0), ("r 3:N", 0), ("r 1", 0), ("1:N:0", 0)),
    ],
)
def test_mate_number_is_read_from_the_second_word(header, number):
    assert mate_number(header) == number


def test_hash_is_that_of_a_file_with_the_new_ids(named):
    hashes = set()
    for rule, ids, new in (
        ("mates", ["a", "b", "a"], ["a/1", "b", "a/2"]),
        ("number", ["a", "b", "a"], ["a", "b", "a_1"]),
    ):
        assert named(rule, ids) == new
        renamed = named.store.sha256
        assert named("error", new) == new
        assert named.store.sha256 == renamed
        hashes.add(renamed)
    assert len(hashes) == 2


def test_read_whose_mate_is_too_short_is_named_as_one_of_a_pair(tmp_path):
    path = tmp_path / "x.fa"
    path.write_text(">a\nACGT\n>b\nAC\n>b\nACGTA\n>a\nA\n>c\nACGTACG\n>d\n")
    store = read_records(path, DNA, tmp_path, repeated_ids="mates", min_length=4)
    assert store.ids(np.arange(3)) == ["a/1", "b/2", "c"]
    assert store.counts == {
        "u_read_as_t": 0, "repeated_ids_renamed": 4, "shorter_than_min_length": 3,
    }  # fmt: skip


def plain_names(rule, ids):
    """The same rules, record by record; None where they refuse."""
    count, seen, new = Counter(ids), Counter(), []
    for name in ids:
        seen[name] += 1
        if rule == "mates":
            if count[name] > 2 or (count[name] == 2 and f"{name}/{seen[name]}" in count):
                return None
            new.append(f"{name}/{seen[name]}" if count[name] == 2 else name)
        else:
            number = 0
            for _ in range(seen[name] - 1):
                number += 1
                while f"{name}_{number}" in count:
                    number += 1
            new.append(f"{name}_{number}" if number else name)
    return new


few_ids = st.lists(st.sampled_from(["a", "b", "a/1", "a/2", "a_1", "a_2", "a_1_1", "b_1", "é"]))


@pytest.mark.parametrize("rule", ["mates", "number"])
@pytest.mark.parametrize("collide", [False, True], ids=["", "hashes collide"])
@settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(ids=few_ids.filter(bool), block=st.integers(1, 5), data=st.data())
def test_names_of_any_ids_are_unique_and_as_the_rule_says(named, rule, collide, ids, block, data):
    cut = data.draw(st.integers(0, len(ids) - 1))
    files = (ids[:cut], ids[cut:]) if cut else (ids,)
    expected = plain_names(rule, ids)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repeated_ids, "_BLOCK", block)
        if collide:
            for module in (records, repeated_ids):
                patch.setattr(module, "hash", lambda name: len(name) % 2, raising=False)
        if expected is None:
            with pytest.raises(InputError):
                named(rule, *files)
            return
        assert named(rule, *files) == expected
    assert len(set(expected)) == len(ids)
    changed = sum(a != b for a, b in zip(ids, expected, strict=True))
    assert named.store.counts["repeated_ids_renamed"] == changed
