"""The two prediction tables, written as VirNucPro writes them."""

import pytest

from virnucpro_pl.compare import score_table
from virnucpro_pl.compare.score_table import ScoreTable, compare_tables, is_score_table
from virnucpro_pl.errors import InputError

SCORES = "Sequence_ID\tPrediction\tscore1\tscore2\n"
CALLS = "Modified_ID\tIs_Virus\n"


@pytest.fixture
def table(tmp_path):
    def write(name, *lines, header=SCORES):
        path = tmp_path / name
        path.write_text(header + "".join(f"{line}\n" for line in lines), encoding="utf-8")
        return ScoreTable(path)

    return write


@pytest.mark.parametrize("block", [1, 2, 65_536])
def test_flips_and_largest_change_are_those_worked_out_by_hand(table, tmp_path, monkeypatch, block):
    monkeypatch.setattr(score_table, "_ID_BLOCK", block)
    a = table(
        "a", "x\tvirus\t0.25\t0.75", "y\tothers\t0.5\t0.5", "z\tvirus\t0\t1", "n\tNA\tnan\tnan"
    )
    b = table("b", "z\tvirus\t0.125\t0.875", "ü/1\tvirus\t0\t1", "n\tvirus\t0\t1",
              "y\tvirus\t0.25\t0.75", "x\tothers\t0.75\t0.25")  # fmt: skip
    result = compare_tables(a, b, tmp_path)
    assert result.rows.total == (4, 5)
    assert result.rows.compared == 3
    assert result.rows.only == ((0, []), (1, ["ü/1"]))
    assert result.rows.failed == ((1, ["n"]), (0, []))
    assert result.flips == (2, ["x", "y"])
    assert (result.to_virus, result.from_virus) == (1, 1)
    assert (result.largest_change, result.largest_change_id) == (0.5, "x")
    assert result.mean_change == pytest.approx((0.5 + 0.25 + 0.125) / 3)


def test_calls_have_flips_and_no_scores(table, tmp_path):
    a = table("a", "x\tTrue", "y\tFalse", "z\tNA", header=CALLS)
    b = table("b", "y\tTrue", "x\tTrue", "z\tTrue", header=CALLS)
    result = compare_tables(a, b, tmp_path)
    assert result.flips == (1, ["y"])
    assert result.rows.failed == ((1, ["z"]), (0, []))
    assert result.largest_change is None


def test_empty_tables(table, tmp_path):
    result = compare_tables(table("a"), table("b"), tmp_path)
    assert (result.rows.compared, result.flips.number) == (0, 0)
    assert result.largest_change is None


def test_doubled_id_raises(table, tmp_path):
    a = table("a", "x\tTrue", "x\tFalse", header=CALLS)
    with pytest.raises(InputError, match=r"a has 1 id\(s\) more than once: x"):
        compare_tables(a, a, tmp_path)


LINES = ("x", "x\tvirus", "x\tvirus\t1", "x\tvirus\ta\tb", "x\tTrue\t0\t1", "\tvirus\t0\t1", "")


@pytest.mark.parametrize("line", [*LINES, "x\tvirus\t0\t1\t2"])
def test_line_that_is_no_row_is_named(table, line):
    with pytest.raises(InputError, match=r"t, line 3: .* is no row of a table with the header"):
        table("t", "fine\tvirus\t0\t1", line)


def test_tables_are_known_by_their_header(tmp_path):
    path = tmp_path / "t"
    for text, known in (
        (SCORES, True),
        (CALLS, True),
        ("a\tb\n", False),
        ("", False),
        ("\0", False),
    ):
        path.write_text(text)
        assert is_score_table(path) is known
