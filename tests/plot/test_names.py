"""Names that are cut to be shown, and names of files that are safe and all different."""

import re

import pytest

from virnucpro_pl.plot.names import file_names, shortened


@pytest.mark.parametrize(
    ("name", "letters", "expected"),
    [("abcdef", 6, "abcdef"), ("abcdefg", 6, "abc…fg"), ("abcdefgh", 7, "abc…fgh"), ("", 5, "")],
)
def test_long_names_are_cut_in_the_middle(name, letters, expected):
    assert shortened(name, letters) == expected


def test_files_are_named_after_their_records():
    assert file_names(["k141_7", "NC_001.1-x"]) == {
        "k141_7": "record_k141_7",
        "NC_001.1-x": "record_NC_001.1-x",
    }


def test_file_names_are_safe_short_and_differ():
    ids = [
        *("a/b", "a|b", "a_b", "a b", "../x", "<b>", "é", "é\u0301", "", ".", "..", "con", "a\x00"),
        *("A_B", "a_B", "n" * 200, "n" * 199 + "m", "n" * 60, "n" * 61),
    ]
    names = file_names(ids)
    assert list(names) == ids
    for name in names.values():
        assert re.fullmatch(r"record_[A-Za-z0-9._-]{0,71}", name)
    assert len({name.lower() for name in names.values()}) == len(ids)
    assert names["n" * 60] == f"record_{'n' * 60}"


def test_a_changed_name_does_not_depend_on_the_other_records():
    assert file_names(["a/b"])["a/b"] == file_names(["a|b", "a_b", "a/b"])["a/b"]
