"""Commands that are plain functions: options that take any number of words."""

from __future__ import annotations

from pathlib import Path

import pytest

from virnucpro_pl.cli.function_command import call

SEEN = []


def collect(path: Path, some_ids: list[str] | None = None, number: int = 3) -> None:
    """Keep what is given.

    Args:
        path: A path.
        some_ids: Ids.
        number: A number.
    """
    SEEN.append((path, some_ids, number))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["p"], (Path("p"), None, 3)),
        (["p", "--some-ids", "a", "b", "--number", "4"], (Path("p"), ["a", "b"], 4)),
        (["--some_ids=--a", "--number=4", "null"], (Path("null"), ["--a"], 4)),
        (["p", "--some_ids", "a", "--some-ids=b=c"], (Path("p"), ["a", "b=c"], 3)),
        (["p", "--some-ids", "-h"], (Path("p"), ["-h"], 3)),
    ],
)
def test_a_list_takes_all_words_up_to_the_next_option(words, expected):
    call(collect, ["collect", *words])
    assert SEEN.pop() == expected


def test_items_of_a_list_are_taken_literally():
    ids = [
        *("null", "007", "1e3", "true", "[a, b]", "{a: b}", "# x", "a: b", "~", '"q', "'", "a,b"),
        *("gi|1|x/y=z;", "<b>&", " ", "", "$HOME", "é", "-1", "*"),
    ]
    call(collect, ["collect", "p", "--some-ids", *ids])
    assert SEEN.pop() == (Path("p"), ids, 3)
