"""The result tables against rows that VirNucPro wrote, and against rows worked out by hand."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from virnucpro_pl.output import tables as module
from virnucpro_pl.output.tables import (
    Contigs,
    format_contigs,
    format_predictions,
    replace_when_written,
    summarise_contigs,
    write_contigs,
    write_highest_scores,
    write_prediction_results,
)

# Both files as VirNucPro wrote them for one input.
PREDICTION_RESULTS = """\
Sequence_ID Prediction score1 score2
gap_inframe_chunk_1F1 virus 0.22400683 0.77599317
gap_inframe_chunk_1F2 virus 0.49612355 0.50387645
gap_inframe_chunk_1F3 others 0.8494732 0.15052679
gap_inframe_chunk_1R1 others 0.5006136 0.49938646
gap_inframe_chunk_1R2 virus 0.32960722 0.67039275
gap_inframe_chunk_1R3 others 0.73170745 0.26829255
gap_frameshift_chunk_1F1 virus 0.34891748 0.6510825
gap_frameshift_chunk_1F2 others 0.60646963 0.3935303
gap_frameshift_chunk_1F3 virus 0.36465546 0.63534456
gap_frameshift_chunk_1R1 others 0.88282084 0.117179185
gap_frameshift_chunk_1R2 virus 0.34987193 0.65012807
gap_frameshift_chunk_1R3 virus 0.11259498 0.88740504
gap_two_chunk_1F1 virus 0.4246834 0.5753166
gap_two_chunk_1F2 virus 0.17006679 0.8299332
gap_two_chunk_1F3 virus 0.069175124 0.9308249
gap_two_chunk_1R1 virus 0.29094797 0.7090521
gap_two_chunk_1R2 others 0.5703874 0.42961255
gap_two_chunk_1R3 others 0.65143865 0.34856132
gap_ends_chunk_1F1 virus 0.22689152 0.7731085
gap_ends_chunk_1F2 others 0.6852933 0.31470665
gap_ends_chunk_1F3 virus 0.11846251 0.88153756
gap_ends_chunk_1R1 virus 0.03775436 0.9622456
gap_ends_chunk_1R2 virus 0.44453764 0.55546236
gap_ends_chunk_1R3 others 0.7643309 0.23566914
gap_run_chunk_1F1 others 0.7399281 0.26007187
gap_run_chunk_1F2 virus 0.20441313 0.79558694
gap_run_chunk_1F3 others 0.69564104 0.304359
gap_run_chunk_1R1 virus 0.26076314 0.7392369
gap_run_chunk_1R2 others 0.6189531 0.38104692
gap_run_chunk_1R3 others 0.8308914 0.16910858
""".replace(" ", "\t")
HIGHEST_SCORES = """\
Modified_ID Is_Virus
gap_ends_chunk_1 True
gap_frameshift_chunk_1 True
gap_inframe_chunk_1 False
gap_run_chunk_1 False
gap_two_chunk_1 True
""".replace(" ", "\t")

ROWS = [line.split("\t") for line in PREDICTION_RESULTS.splitlines()[1:]]
IDS = [row[0] for row in ROWS]
SCORES = np.array([row[2:] for row in ROWS], dtype=np.float32)


def pairs(*virus: float) -> np.ndarray:
    """Give the scores of ORFs with these P(virus)."""
    score = np.array(virus, dtype=np.float32)
    return np.stack([1 - score, score], axis=1)


@pytest.mark.parametrize("rows_per_write", [7, 1 << 14])
def test_write_prediction_results_equals_virnucpro(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_per_write: int
) -> None:
    monkeypatch.setattr(module, "_ROWS_PER_WRITE", rows_per_write)
    write_prediction_results(tmp_path / "p.txt", IDS, SCORES)
    assert (tmp_path / "p.txt").read_bytes() == PREDICTION_RESULTS.encode()
    assert [path.name for path in tmp_path.iterdir()] == ["p.txt"]


def test_write_highest_scores_equals_virnucpro(tmp_path: Path) -> None:
    for order in (slice(None), slice(None, None, -1)):
        write_highest_scores(tmp_path / "h.csv", IDS[order], SCORES[order])
        assert (tmp_path / "h.csv").read_bytes() == HIGHEST_SCORES.encode()


def test_write_tables_without_orf_leave_headers_only(tmp_path: Path) -> None:
    none = np.empty((0, 2), dtype=np.float32)
    write_prediction_results(tmp_path / "p.txt", [], none)
    write_highest_scores(tmp_path / "h.csv", [], none)
    assert (tmp_path / "p.txt").read_text() == "Sequence_ID\tPrediction\tscore1\tscore2\n"
    assert (tmp_path / "h.csv").read_text() == "Modified_ID\tIs_Virus\n"


def test_format_predictions_numbers_as_numpy_writes_float32() -> None:
    scores = np.array([[0.0011595711, 0.99884045], [1, 1.2e-05], [0, 1]], dtype=np.float32)
    assert format_predictions(["a", "b", "c"], scores) == (
        "a\tvirus\t0.0011595711\t0.99884045\nb\tothers\t1.0\t1.2e-05\nc\tvirus\t0.0\t1.0\n"
    )


def test_tie_is_others_for_the_orf_and_true_for_the_chunk(tmp_path: Path) -> None:
    assert format_predictions(["a_chunk_1F1"], pairs(0.5)) == "a_chunk_1F1\tothers\t0.5\t0.5\n"
    write_highest_scores(tmp_path / "h.csv", ["a_chunk_1F1"], pairs(0.5))
    assert (tmp_path / "h.csv").read_text().endswith("a_chunk_1\tTrue\n")


def test_write_highest_scores_sorts_chunks_as_text(tmp_path: Path) -> None:
    ids = ["b_chunk_2F1", "b_chunk_10R3", "a_chunk_1F1", "B_chunk_1F1", "b_chunk_2R2"]
    write_highest_scores(tmp_path / "h.csv", ids, pairs(0.9, 0.1, 0.7, 0.6, 0.05))
    assert (tmp_path / "h.csv").read_text().splitlines()[1:] == [
        "B_chunk_1\tTrue",
        "a_chunk_1\tTrue",
        "b_chunk_10\tFalse",
        "b_chunk_2\tFalse",  # best of both classes: 0.95 others, 0.9 virus
    ]


def test_tables_orf_without_score_is_na_and_counts_for_nothing(tmp_path: Path) -> None:
    ids = ["a_chunk_1F1", "a_chunk_1R2", "b_chunk_1F1"]
    scores = pairs(np.nan, 0.75, np.inf)
    assert format_predictions(ids, scores).splitlines() == [
        "a_chunk_1F1\tNA\tnan\tnan",
        "a_chunk_1R2\tvirus\t0.25\t0.75",
        "b_chunk_1F1\tNA\t-inf\tinf",
    ]
    write_highest_scores(tmp_path / "h.csv", ids, scores)
    assert (tmp_path / "h.csv").read_text().splitlines()[1:] == [
        "a_chunk_1\tTrue",
        "b_chunk_1\tNA",
    ]


@pytest.mark.parametrize("scores", [SCORES[:-1], SCORES[:, :1], SCORES.ravel()])
def test_tables_scores_of_wrong_shape_raise_and_write_nothing(
    tmp_path: Path, scores: np.ndarray
) -> None:
    for write in (write_prediction_results, write_highest_scores):
        with pytest.raises(ValueError, match="30 ORFs need scores of shape"):
            write(tmp_path / "t", IDS, scores)
    assert list(tmp_path.iterdir()) == []


def test_replace_when_written_failure_keeps_old_file(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text("old")

    def fail() -> None:
        with replace_when_written(path) as file:
            file.write("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def contigs_by_hand() -> Contigs:
    """Summarise six records: two chunks scored, one of three, none, too short, failed, a tie."""
    return summarise_contigs(
        lengths=np.array([700, 1234, 500, 2, 90, 3]),
        n_chunks=np.array([2, 3, 1, 1, 1, 1]),
        record=np.array([0, 0, 0, 1, 1, 4, 5]),
        chunk=np.array([0, 0, 1, 2, 2, 0, 0]),
        scores=pairs(0.25, 0.75, 0.125, 0.875, np.nan, np.nan, 0.5),
    )


def test_summarise_contigs_by_hand_gives_one_row_per_record(tmp_path: Path) -> None:
    ids = ["mixed", "one", "closed", "short", "lost", "tie"]
    write_contigs(tmp_path / "contigs.tsv", ids, contigs_by_hand())
    # mixed: best of chunk 1 is 0.75 on both sides, viral; of chunk 2 0.125; mean 0.4375.
    assert (tmp_path / "contigs.tsv").read_text().replace("\t", " ") == (
        "seq_name length n_chunks n_orfs n_viral_chunks prediction virus_score status\n"
        "mixed 700 2 3 1 others 0.4375 ok\n"
        "one 1234 3 2 1 virus 0.875 ok\n"
        "closed 500 1 0 0 NA NA no_orf\n"
        "short 2 1 0 0 NA NA too_short\n"
        "lost 90 1 1 0 NA NA failed\n"
        "tie 3 1 1 1 virus 0.5 ok\n"
    )


@pytest.mark.parametrize(("threshold", "expected"), [(0.9, True), (0.900001, False), (0.0, True)])
def test_summarise_contigs_threshold_includes_its_own_value(
    threshold: float, expected: bool
) -> None:
    one = np.array([0])
    contigs = summarise_contigs(np.array([300]), np.array([1]), one, one, pairs(0.9), threshold)
    assert contigs.is_virus.tolist() == [expected]


def test_summarise_contigs_without_orf_keeps_every_record() -> None:
    none = np.empty(0, dtype=np.int64)
    contigs = summarise_contigs(
        np.array([1, 600]), np.array([1, 2]), none, none, np.empty((0, 2), dtype=np.float32)
    )
    assert contigs.status.tolist() == ["too_short", "no_orf"]
    assert not contigs.is_virus.any()
    assert np.isnan(contigs.virus_score).all()


@pytest.mark.parametrize(("record", "chunk"), [(2, 0), (0, 1), (0, -1)])
def test_summarise_contigs_orf_outside_records_raises(record: int, chunk: int) -> None:
    with pytest.raises(ValueError, match="outside the chunks of the 2 records"):
        summarise_contigs(
            np.array([9, 9]), np.array([1, 1]), np.array([record]), np.array([chunk]), pairs(0.5)
        )


def test_format_contigs_wrong_number_of_ids_raises() -> None:
    with pytest.raises(ValueError, match="zip"):
        list(format_contigs(["only one"], contigs_by_hand()))


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
    contigs = summarise_contigs(lengths, np.array(n_chunks), record, chunk, scores)
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
        assert contigs.status[r] == ("ok" if groups else "failed" if has_orf else "no_orf")
