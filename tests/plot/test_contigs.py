"""Which records of `contigs.tsv` are drawn and listed."""

import numpy as np
import pytest

from virnucpro_pl.errors import UsageError
from virnucpro_pl.plot import tables
from virnucpro_pl.plot.contigs import LISTED, Choice, read_contigs

HEADER = "seq_name\tlength\tn_chunks\tn_orfs\tn_viral_chunks\tprediction\tvirus_score\tstatus"
ROWS = (
    "b\t100\t1\t1\t1\tvirus\t0.9\tok",
    "long\t900\t9\t3\t1\tothers\t0.1\tok",
    "a\t200\t2\t1\t1\tvirus\t0.9\tok",
    "closed\t950\t9\t0\t0\tNA\tNA\tno_orf",
    "007\t100\t1\t1\t1\tvirus\t0.95\tok",
    "skipped\t20\t0\t0\t0\tNA\tNA\tskipped",
    "failed\t300\t3\t3\t0\tNA\tNA\tfailed",
)


@pytest.fixture(params=[1, 3, 100])
def table(request, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_LINES", request.param)
    path = tmp_path / "contigs.tsv"
    path.write_text("\n".join((HEADER, *ROWS, "")))
    return path


@pytest.mark.parametrize(
    ("choice", "drawn"),
    [
        (Choice(), ["007", "a", "b", "long", "failed"]),
        (Choice(top=0), ["long", "failed", "a", "b", "007"]),
        (Choice(top=2, longest=2), ["007", "a", "long", "failed"]),
        (Choice(top=2, longest=0), ["007", "a"]),
        (Choice(top=0, longest=0), []),
        (Choice(("long", "closed", "a"), 2, 1), ["long", "closed", "a", "007"]),
    ],
)
def test_records_are_drawn_once_those_asked_for_first(table, choice, drawn):
    assert read_contigs(table, choice).drawn["seq_name"].tolist() == drawn


def test_best_are_listed_by_score_then_id_and_none_without_a_score(table):
    contigs = read_contigs(table, Choice(top=0))
    assert contigs.best["seq_name"].tolist() == ["007", "a", "b", "long"]
    assert contigs.best["virus_score"].tolist() == [0.95, 0.9, 0.9, 0.1]
    assert contigs.best["length"].tolist() == [100, 200, 100, 900]
    assert "call" not in contigs.best
    np.testing.assert_array_equal(contigs.records.calls, [1, 0, 1, 2, 1, 2, 2])


def test_columns_call_and_tier_are_kept_where_they_are(table):
    rows = [f"{row}\tviral\thigh\tx" for row in ROWS]
    table.write_text("\n".join((f"{HEADER}\tcall\ttier\tinput", *rows, "")))
    best = read_contigs(table, Choice()).best
    assert best[["call", "tier"]].to_numpy().tolist() == [["viral", "high"]] * 4


def test_as_many_are_listed_as_are_drawn(table):
    rows = [f"r{i}\t9\t1\t1\t1\tvirus\t0.5\tok" for i in range(LISTED + 9)]
    table.write_text("\n".join((HEADER, *rows, "")))
    assert len(read_contigs(table, Choice()).best) == LISTED
    assert len(read_contigs(table, Choice(top=LISTED + 5)).best) == LISTED + 5


def test_table_without_records_has_nothing_to_draw(table):
    table.write_text(f"{HEADER}\n")
    contigs = read_contigs(table, Choice())
    assert (len(contigs.best), len(contigs.drawn), len(contigs.records.lengths)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("a", "7", "x"), r"contigs\.tsv has no record 7, x"),
        (("skipped", "a"), "no chunk of skipped, so nothing to draw"),
    ],
)
def test_records_that_cannot_be_drawn_are_named(table, asked, message):
    with pytest.raises(UsageError, match=message):
        read_contigs(table, Choice(asked))
