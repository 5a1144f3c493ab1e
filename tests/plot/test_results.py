"""Folders of results as columns of numbers, and damaged ones."""

import json

import numpy as np
import pytest

from virnucpro_pl.errors import InputError, UsageError
from virnucpro_pl.plot.contigs import Choice
from virnucpro_pl.plot.results import read_results

CONTIGS = (
    "seq_name\tlength\tn_chunks\tn_orfs\tn_viral_chunks\tprediction\tvirus_score\tstatus\n"
    "short\t10\t1\t1\t1\tvirus\t0.9\tok\n"
    "long_chunk_2\t25\t3\t3\t1\tothers\t0.45\tok\n"
    "closed\t90\t9\t0\t0\tNA\tNA\tno_orf\n"
)
PREDICTIONS = (
    "Sequence_ID\tPrediction\tscore1\tscore2\n"
    "short_chunk_1F1\tvirus\t0.1\t0.9\n"
    "long_chunk_2_chunk_1F1\tothers\t0.8\t0.2\n"
    "long_chunk_2_chunk_1R3\tvirus\t0.3\t0.7\n"
    "long_chunk_2_chunk_3F2\tNA\tnan\tnan\n"
)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "results"
    path.mkdir()
    (path / "contigs.tsv").write_text(CONTIGS)
    (path / "prediction_results.txt").write_text(PREDICTIONS)
    (path / "summary.json").write_text(json.dumps({"chunk_length": 10, "threshold": 0.4}))
    (tmp_path / "results.run.json").write_text('{"devices": 2}')
    return path


def test_read_results_gives_columns_and_tracks(folder):
    results = read_results(folder, Choice(top=0, longest=2))
    assert results.orf_scores.dtype == np.float32
    np.testing.assert_allclose(results.orf_scores, [0.9, 0.2, 0.7, np.nan])
    assert results.records.lengths.tolist() == [10, 25, 90]
    assert results.records.calls.tolist() == [1, 0, 2]
    np.testing.assert_allclose(results.records.virus_score, [0.9, 0.45, np.nan])
    assert (results.threshold, results.run) == (0.4, {"devices": 2})


def test_tracks_are_the_longest_records_with_an_orf(folder):
    first, second = read_results(folder, Choice(top=0, longest=5)).tracks
    assert (first.name, first.call, first.bases) == ("long_chunk_2", "others", 25)
    assert first.places.tolist() == [[0, 10], [8, 18], [16, 25]]
    np.testing.assert_allclose(first.scores[0], [0.8, 0.7])
    assert np.isnan(first.scores[1:]).all()
    assert first.viral.tolist() == [False, False, False]  # 0.8 of one frame beats 0.7 of another
    assert second.name == "short"
    assert [track.name for track in read_results(folder, Choice(top=0, longest=1)).tracks] == [
        "long_chunk_2"
    ]
    assert read_results(folder, Choice(top=0, longest=0)).tracks == []


SAMPLED = (
    CONTIGS.replace("status\n", "status\tn_sampled\n").replace("ok\n", "ok\t1\n", 1)
    .replace("ok\n", "ok\t2\n").replace("no_orf\n", "no_orf\t2\n")
)  # fmt: skip


def test_tracks_know_which_chunks_were_sampled(folder):
    assert all(t.sampled.all() for t in read_results(folder, Choice(("closed",))).tracks)
    (folder / "contigs.tsv").write_text(SAMPLED)
    results = read_results(folder, Choice(("closed", "long_chunk_2", "short")))
    assert [np.flatnonzero(track.sampled).tolist() for track in results.tracks] == [
        [0, 8], [0, 2], [0]
    ]  # fmt: skip
    assert results.best["n_sampled"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ok\t2", "ok\t4", "long_chunk_2 has a sample of 4 of 3 chunks in contigs.tsv"),
        ("ok\t2", "ok\t0", "long_chunk_2 has a sample of 0 of 3 chunks"),
        ("ok\t2", "ok\t-2", r"contigs\.tsv, line 3: -2 is below 0"),
        ("ok\t2", "ok\t1", r"line 3: long_chunk_2_chunk_1F1 lies in none of the 1 chunks of its"),
    ],
)
def test_samples_that_cannot_be_are_refused(folder, old, new, message):
    (folder / "contigs.tsv").write_text(SAMPLED.replace(old, new))
    with pytest.raises(InputError, match=message):
        read_results(folder, Choice(top=0, longest=3))


def test_without_contigs_records_are_ordered_by_chunks(folder):
    (folder / "contigs.tsv").unlink()
    (folder / "summary.json").unlink()
    results = read_results(folder, Choice(top=0, longest=1))
    assert results.records is None
    [track] = results.tracks
    assert (track.name, track.bases, len(track.scores)) == ("long_chunk_2", None, 3)
    assert track.places[0].tolist() == [0.5, 1.5]


def test_without_contigs_records_are_found_by_their_orfs(folder):
    (folder / "contigs.tsv").unlink()
    results = read_results(folder, Choice(("short",), longest=1))
    assert [track.name for track in results.tracks] == ["short", "long_chunk_2"]
    assert len(results.best) == 0
    with pytest.raises(UsageError, match=r"results\.txt has no record long, 1"):
        read_results(folder, Choice(("long", "short", "1")))


def test_ids_of_another_program_have_no_track(folder):
    (folder / "contigs.tsv").unlink()
    table = "Sequence_ID\tPrediction\tscore1\tscore2\ngene_1\tvirus\t0.1\t0.9\n"
    (folder / "prediction_results.txt").write_text(table)
    results = read_results(folder, Choice(top=0, longest=3))
    assert (results.tracks, len(results.orf_scores)) == ([], 1)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("contigs.tsv", "\t25\t", "\tx\t", r"contigs\.tsv, line 3: .*'x'"),
        ("contigs.tsv", "25\t3\t3", "25\t-3\t3", r"contigs\.tsv, line 3: -3 is below 0"),
        ("contigs.tsv", "\tothers\t", "\tperhaps\t", r"contigs\.tsv, line 3: "),
        ("contigs.tsv", "n_orfs", "orfs", "has no column n_orfs; it has seq_name, length"),
        ("contigs.tsv", "25\t3\t3", "25\t4\t3", "has 4 chunks in contigs.tsv, but 3 of 10"),
        ("prediction_results.txt", "\t0.7", "", "results.txt, line 4: 3 columns, not 4"),
        ("prediction_results.txt", "0.7", "high", "results.txt, line 4: .*high"),
        ("prediction_results.txt", "2_chunk_3F2", "2_chunk_4F2", "lies outside the 3 chunks"),
        ("summary.json", "{", "", "cannot be read as JSON"),
        ("summary.json", '{"chunk_length": 10, "threshold": 0.4}', "[]", "no JSON object"),
    ],
)
def test_damaged_files_raise_and_name_the_place(folder, name, old, new, message):
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=message):
        read_results(folder, Choice(top=0, longest=3))


def test_bytes_that_are_no_text_raise(folder):
    (folder / "contigs.tsv").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"contigs\.tsv cannot be read"):
        read_results(folder, Choice(top=0, longest=3))


def test_other_folder_raises(tmp_path):
    with pytest.raises(UsageError, match=r"holds no results: it has no prediction_results\.txt"):
        read_results(tmp_path, Choice(top=0, longest=3))
