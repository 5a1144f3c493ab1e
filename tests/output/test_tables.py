"""The result tables against rows that VirNucPro wrote, and against rows worked out by hand."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from virnucpro_pl.contracts import Inputs
from virnucpro_pl.output import sorted_lines
from virnucpro_pl.output import tables as module
from virnucpro_pl.output.chunk_table import summarise_chunks
from virnucpro_pl.output.tables import (
    STATUSES,
    ContigCalls,
    Ids,
    summarise_contigs,
    write_contigs,
    write_highest_scores,
    write_prediction_results,
)

# Files as VirNucPro wrote them, in pairs of one input.
DATA = Path(__file__).parent.parent / "data" / "virnucpro"
WRITTEN_BY_VIRNUCPRO = sorted(path.stem for path in DATA.glob("*.txt"))


def read_rows(name: str) -> tuple[list[str], np.ndarray]:
    """Give ids and scores (N, 2) of a table that VirNucPro wrote."""
    rows = [line.split("\t") for line in (DATA / f"{name}.txt").read_text().splitlines()[1:]]
    return [row[0] for row in rows], np.array([row[2:] for row in rows], dtype=np.float32)


IDS, SCORES = read_rows("lengths_300")


def pairs(*virus: float) -> np.ndarray:
    """Give the scores of ORFs with these P(virus)."""
    score = np.array(virus, dtype=np.float32)
    return np.stack([1 - score, score], axis=1)


def of(names: list[str]) -> Ids:
    """Give the names of some rows, as a store does."""
    return lambda rows: [names[row] for row in rows]


@pytest.mark.parametrize("name", WRITTEN_BY_VIRNUCPRO)
@pytest.mark.parametrize("rows", [1, 7, 1 << 14])
def test_write_prediction_results_equals_virnucpro(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, name: str
) -> None:
    ids, scores = read_rows(name)
    monkeypatch.setattr(module, "_ROWS", rows)
    write_prediction_results(tmp_path / "p.txt", of(ids), scores)
    assert (tmp_path / "p.txt").read_bytes() == (DATA / f"{name}.txt").read_bytes()


@pytest.mark.parametrize("name", WRITTEN_BY_VIRNUCPRO)
@pytest.mark.parametrize("rows", [1, 7, 1 << 18])
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_write_highest_scores_rows_in_any_order_equal_virnucpro(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, seed: int | None, name: str
) -> None:
    ids, scores = read_rows(name)
    monkeypatch.setattr(module, "_ROWS", rows)
    monkeypatch.setattr(sorted_lines, "_LINES", rows)
    order = np.arange(len(ids))
    if seed is not None:
        order = np.random.default_rng(seed).permutation(order)
    write_highest_scores(tmp_path / "h.csv", of([ids[i] for i in order]), scores[order], tmp_path)
    assert (tmp_path / "h.csv").read_bytes() == (DATA / f"{name}.csv").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["h.csv"]


def test_sort_lines_fewer_than_a_run_never_touch_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sorted_lines, "_LINES", 4)
    nowhere = tmp_path / "nowhere"
    assert list(sorted_lines.sort_lines(["c", "a", "b"], nowhere)) == ["a", "b", "c"]
    with pytest.raises(FileNotFoundError):
        list(sorted_lines.sort_lines(["c", "a", "b", "d"], nowhere))


def test_write_tables_without_orf_leave_headers_only(tmp_path: Path) -> None:
    none = np.empty((0, 2), dtype=np.float32)
    write_prediction_results(tmp_path / "p.txt", of([]), none)
    write_highest_scores(tmp_path / "h.csv", of([]), none, tmp_path)
    assert (tmp_path / "p.txt").read_text() == "Sequence_ID\tPrediction\tscore1\tscore2\n"
    assert (tmp_path / "h.csv").read_text() == "Modified_ID\tIs_Virus\n"


def predictions(tmp_path: Path, ids: list[str], scores: np.ndarray) -> list[str]:
    write_prediction_results(tmp_path / "p.txt", of(ids), scores)
    return (tmp_path / "p.txt").read_text().splitlines()[1:]


def highest(tmp_path: Path, ids: list[str], scores: np.ndarray) -> list[str]:
    write_highest_scores(tmp_path / "h.csv", of(ids), scores, tmp_path)
    return (tmp_path / "h.csv").read_text().splitlines()[1:]


def test_predictions_numbers_as_numpy_writes_float32(tmp_path: Path) -> None:
    scores = np.array([[0.0011595711, 0.99884045], [1, 1.2e-05], [0, 1]], dtype=np.float32)
    assert predictions(tmp_path, ["a", "b", "c"], scores) == [
        "a\tvirus\t0.0011595711\t0.99884045",
        "b\tothers\t1.0\t1.2e-05",
        "c\tvirus\t0.0\t1.0",
    ]


def test_tie_is_others_for_the_orf_and_true_for_the_chunk(tmp_path: Path) -> None:
    assert predictions(tmp_path, ["a_chunk_1F1"], pairs(0.5)) == ["a_chunk_1F1\tothers\t0.5\t0.5"]
    assert highest(tmp_path, ["a_chunk_1F1"], pairs(0.5)) == ["a_chunk_1\tTrue"]


def test_write_highest_scores_sorts_chunks_as_text(tmp_path: Path) -> None:
    ids = [
        "b_chunk_2F1",
        "b_chunk_10R3",
        "a_chunk_1F1",
        "B_chunk_1F1",
        "b_chunk_2R2",
        "b!_chunk_1F1",
    ]
    assert highest(tmp_path, ids, pairs(0.9, 0.1, 0.7, 0.6, 0.05, 0.6)) == [
        "B_chunk_1\tTrue",
        "a_chunk_1\tTrue",
        "b!_chunk_1\tTrue",
        "b_chunk_10\tFalse",
        "b_chunk_2\tFalse",  # best of both classes: 0.95 others, 0.9 virus
    ]


def test_tables_orf_without_score_is_na_and_counts_for_nothing(tmp_path: Path) -> None:
    ids = ["a_chunk_1F1", "a_chunk_1R2", "b_chunk_1F1"]
    scores = pairs(np.nan, 0.75, np.inf)
    assert predictions(tmp_path, ids, scores) == [
        "a_chunk_1F1\tNA\tnan\tnan",
        "a_chunk_1R2\tvirus\t0.25\t0.75",
        "b_chunk_1F1\tNA\t-inf\tinf",
    ]
    assert highest(tmp_path, ids, scores) == ["a_chunk_1\tTrue", "b_chunk_1\tNA"]


def test_tables_wrong_number_of_ids_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="zip"):
        write_prediction_results(tmp_path / "p.txt", lambda rows: ["only one"], SCORES)
    with pytest.raises(ValueError, match="zip"):
        write_contigs(tmp_path / "c.tsv", lambda rows: ["only one"], contigs_by_hand())


def contigs_by_hand() -> ContigCalls:
    """Summarise six records: two chunks scored, one of three, none, too short, failed, a tie."""
    chunks = summarise_chunks(
        n_chunks=np.array([2, 3, 1, 1, 1, 1]),
        record=np.array([0, 0, 0, 1, 1, 4, 5]),
        chunk=np.array([0, 0, 1, 2, 2, 0, 0]),
        frame=np.zeros(7, np.int8),
        scores=pairs(0.25, 0.75, 0.125, 0.875, np.nan, np.nan, 0.5),
    )
    return summarise_contigs(np.array([700, 1234, 500, 2, 90, 3]), chunks)


def test_contigs_of_several_files_name_the_file_last(tmp_path: Path) -> None:
    inputs = Inputs(["a.fa", "b.fa"], np.array([0, 0, 1, 1, 0, 1], np.int32))
    write_contigs(tmp_path / "contigs.tsv", of(list("abcdef")), contigs_by_hand(), inputs)
    rows = [line.split("\t") for line in (tmp_path / "contigs.tsv").read_text().splitlines()]
    assert [row[-1] for row in rows] == ["input", "a.fa", "a.fa", "b.fa", "b.fa", "a.fa", "b.fa"]
    write_contigs(tmp_path / "contigs.tsv", of(list("abcdef")), contigs_by_hand())
    plain = [line.split("\t") for line in (tmp_path / "contigs.tsv").read_text().splitlines()]
    assert plain == [row[:-1] for row in rows]


def test_summarise_contigs_by_hand_gives_one_row_per_record(tmp_path: Path) -> None:
    ids = ["mixed", "one", "closed", "short", "lost", "tie"]
    write_contigs(tmp_path / "contigs.tsv", of(ids), contigs_by_hand())
    # mixed: best of chunk 1 is 0.75 on both sides, viral; of chunk 2 0.125; mean 0.4375.
    # Its deltas are 0 (0.75 - 0.75) and -0.75 (0.125 - 0.875), of which the first has no weight.
    assert (tmp_path / "contigs.tsv").read_text().replace("\t", " ") == (
        "seq_name length n_chunks n_orfs n_viral_chunks prediction virus_score status"
        " weighted_delta call tier n_confident_viral n_confident_others n_ambiguous"
        " virus_probability fdr n_sampled\n"
        "mixed 700 2 3 1 others 0.4375 ok -0.75 others low 0 1 1 NA NA 2\n"
        "one 1234 3 2 1 virus 0.875 ok 0.75 viral low 1 0 0 NA NA 3\n"
        "closed 500 1 0 0 NA NA no_orf NA NA NA 0 0 0 NA NA 1\n"
        "short 2 1 0 0 NA NA too_short NA NA NA 0 0 0 NA NA 1\n"
        "lost 90 1 1 0 NA NA failed NA NA NA 0 0 0 NA NA 1\n"
        "tie 3 1 1 1 virus 0.5 ok 0.0 ambiguous review 0 0 0 NA NA 1\n"
    )


@pytest.mark.parametrize(("threshold", "expected"), [(0.9, True), (0.900001, False), (0.0, True)])
def test_summarise_contigs_threshold_includes_its_own_value(
    threshold: float, expected: bool
) -> None:
    one = np.array([0])
    chunks = summarise_chunks(np.array([1]), one, one, one, pairs(0.9))
    contigs = summarise_contigs(np.array([300]), chunks, threshold)
    assert contigs.is_virus.tolist() == [expected]


def test_summarise_contigs_skipped_ones_are_those_below_the_length() -> None:
    lengths, none = np.array([0, 1, 2, 3, 500]), np.array([], np.int64)
    chunks = summarise_chunks(np.array([0, 0, 1, 1, 1]), none, none, none, pairs())
    contigs = summarise_contigs(lengths, chunks, min_length=2)
    names = [STATUSES[i] for i in contigs.status]
    assert names == ["skipped", "skipped", "too_short", "no_orf", "no_orf"]


def test_summarise_contigs_no_orf_in_a_sample_is_no_record_without_one(tmp_path: Path) -> None:
    n_chunks, lengths = np.array([9, 9, 2, 9, 9, 9]), np.array([900] * 4 + [2, 5])
    n_sampled = np.array([3, 3, 2, 9, 3, 3])
    one, orf = np.array([1]), np.array([8])
    chunks = summarise_chunks(n_chunks, one, orf, np.array([0]), pairs(np.nan))
    contigs = summarise_contigs(lengths, chunks, min_length=6, n_sampled=n_sampled)
    assert [STATUSES[i] for i in contigs.status] == [
        *("no_orf_in_sample", "failed", "no_orf", "no_orf", "skipped", "skipped")
    ]
    write_contigs(tmp_path / "contigs.tsv", of(list("abcdef")), contigs)
    rows = [line.split("\t") for line in (tmp_path / "contigs.tsv").read_text().splitlines()]
    assert [row[-1] for row in rows] == ["n_sampled", "3", "3", "2", "9", "3", "3"]
    assert [row[2] for row in rows[1:]] == ["9", "9", "2", "9", "9", "9"]


def test_summarise_contigs_without_orf_keeps_every_record() -> None:
    none = np.empty(0, dtype=np.int64)
    no_scores = np.empty((0, 2), dtype=np.float32)
    chunks = summarise_chunks(np.array([1, 2]), none, none, none, no_scores)
    contigs = summarise_contigs(np.array([1, 600]), chunks)
    assert [STATUSES[i] for i in contigs.status] == ["too_short", "no_orf"]
    assert not contigs.is_virus.any()
    assert np.isnan(contigs.virus_score).all()


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=6).flatmap(
        lambda n_chunks: st.tuples(
            st.just(n_chunks),
            st.lists(
                st.tuples(
                    st.integers(0, len(n_chunks) - 1),
                    st.integers(0, 3),
                    st.integers(0, 64) | st.none(),
                ),
                max_size=40,
            ),
        )
    )
)
def test_summarise_contigs_random_orfs_equal_slow_reference(
    drawn: tuple[list[int], list[tuple[int, int, int | None]]],
) -> None:
    n_chunks, orfs = drawn
    orfs = [(r, c % n_chunks[r], s) for r, c, s in orfs]
    scores = pairs(*(np.nan if s is None else s / 64 for _, _, s in orfs))
    record, chunk = np.array([orf[:2] for orf in orfs], dtype=np.int64).reshape(-1, 2).T
    lengths = np.full(len(n_chunks), 100)
    frame = np.zeros(len(record), np.int8)
    chunks = summarise_chunks(np.array(n_chunks), record, chunk, frame, scores)
    contigs = summarise_contigs(lengths, chunks)
    for r, n in enumerate(n_chunks):
        groups = [
            [s / 64 for q, k, s in orfs if (q, k) == (r, c) and s is not None] for c in range(n)
        ]
        groups = [group for group in groups if group]
        assert contigs.n_orfs[r] == sum(q == r for q, _, _ in orfs)
        assert contigs.n_viral_chunks[r] == sum(max(g) >= 1 - min(g) for g in groups)
        mean = np.mean([max(g) for g in groups]) if groups else np.nan
        assert np.array_equal(contigs.virus_score[r], np.float32(mean), equal_nan=True)
        has_orf = contigs.n_orfs[r] > 0
        status = "ok" if groups else "failed" if has_orf else "no_orf"
        assert STATUSES[contigs.status[r]] == status
        assert contigs.n_scored_chunks[r] == len(groups)
        assert contigs.n_orf_chunks[r] == len({c for q, c, _ in orfs if q == r})
