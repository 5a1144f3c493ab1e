"""Places, scores and calls of chunks, worked out by hand."""

from pathlib import Path

import numpy as np
import pytest

from virnucpro_pl.contracts import ChunkPlaces, Inputs, OrfOrigin
from virnucpro_pl.output import chunk_table as module
from virnucpro_pl.output.chunk_table import (
    CHUNKS_HEADER,
    ChunkCalls,
    chunk_blocks,
    summarise_chunks,
    write_bed,
    write_chunks,
)

SIZE = 10
IDS = ["mixed", "none", "skipped", "lost", "tied"]
LENGTHS = np.array([25, 12, 0, 7, 10])
N_CHUNKS = np.array([3, 2, 0, 1, 1])
NAN = np.nan
# mixed: best others and best virus of chunk 1 are of two frames; chunk 2 has no ORF; chunk 3 has
# three frames with one largest score2, of which the first in the order of frames is named.
ORFS = [
    *((0, 0, 5, 0.8, 0.2), (0, 0, 1, 0.3, 0.7), (0, 0, 4, NAN, NAN)),
    *((0, 2, 3, 0.1, 0.9), (0, 2, 2, 0.1, 0.9), (0, 2, 4, 0.1, 0.9)),
    *((3, 0, 0, NAN, NAN), (3, 0, 1, 0.5, np.inf)),
    (4, 0, 3, 0.5, 0.5),
]


class Contigs:
    """Records with ids and lengths; what a store on disk gives."""

    lengths = LENGTHS

    def ids(self, rows):
        return [IDS[row] for row in rows]

    def sequences(self, rows):
        return [b"ACGTTGCAAC"[:1] * LENGTHS[row] for row in rows]


def places(rows: np.ndarray) -> ChunkPlaces:
    """Give chunks of ten bases at most, each beginning eight behind the last."""
    pairs = [(8 * i, min(SIZE, LENGTHS[r] - 8 * i)) for r in rows for i in range(N_CHUNKS[r])]
    start, length = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return ChunkPlaces(start, length, np.ones(len(start), np.bool_))


@pytest.fixture(params=[None, 0], ids=["in order", "shuffled"])
def calls(request) -> ChunkCalls:
    order = np.arange(len(ORFS))
    if request.param is not None:
        order = np.random.default_rng(request.param).permutation(order)
    record, chunk, frame, others, virus = np.array(ORFS)[order].T
    scores = np.stack([others, virus], axis=1).astype(np.float32)
    return summarise_chunks(N_CHUNKS, *(c.astype(np.int64) for c in (record, chunk, frame)), scores)


def origin() -> OrfOrigin:
    none = np.empty(0, np.int64)
    return OrfOrigin(Contigs(), places, N_CHUNKS, N_CHUNKS, none, none, none.astype(np.int8), {})


EXPECTED = """\
mixed 1 1 10 3 F2 0.8 0.7 others
mixed 2 9 18 0 NA NA NA NA
mixed 3 17 25 3 F3 0.1 0.9 virus
none 1 1 10 0 NA NA NA NA
none 2 9 12 0 NA NA NA NA
lost 1 1 7 2 NA NA NA NA
tied 1 1 10 1 R1 0.5 0.5 virus
"""


@pytest.mark.parametrize("size", [1, 3, 1 << 16])
def test_chunks_by_hand_are_rows_in_the_order_of_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: ChunkCalls, size: int
) -> None:
    monkeypatch.setattr(module, "_CHUNKS", size)
    write_chunks(tmp_path / "chunks.tsv", chunk_blocks(origin(), calls), None)
    text = (tmp_path / "chunks.tsv").read_text()
    assert text.replace("\t", " ") == f"{CHUNKS_HEADER}\n{EXPECTED}".replace("\t", " ")


def test_blocks_hold_whole_records_and_few_chunks(monkeypatch, calls: ChunkCalls) -> None:
    monkeypatch.setattr(module, "_CHUNKS", 2)
    blocks = list(chunk_blocks(origin(), calls))
    assert [block.names for block in blocks] == [["mixed"], ["none", "skipped"], ["lost", "tied"]]
    assert [len(block.calls.virus) for block in blocks] == [3, 2, 2]


def test_chunks_of_several_files_name_the_file(tmp_path: Path, calls: ChunkCalls) -> None:
    inputs = Inputs(["a.fa", "x/b.fq.gz"], np.array([0, 0, 0, 1, 1], np.int32))
    write_chunks(tmp_path / "chunks.tsv", chunk_blocks(origin(), calls), inputs)
    header, *rows = [
        line.split("\t") for line in (tmp_path / "chunks.tsv").read_text().splitlines()
    ]
    assert header[-1] == "input"
    assert [row[-1] for row in rows] == ["a.fa"] * 5 + ["x/b.fq.gz"] * 2
    assert [" ".join(row[:-1]) for row in rows] == EXPECTED.splitlines()


def test_chunks_that_were_not_sampled_are_said_to_be_so(tmp_path: Path, calls: ChunkCalls) -> None:
    def sampled_places(rows: np.ndarray) -> ChunkPlaces:
        """Give all chunks, the second ones of records not sampled."""
        number = np.concatenate([np.arange(N_CHUNKS[row]) for row in rows])
        return places(rows)._replace(is_sampled=number != 1)

    sampled = origin()._replace(places=sampled_places)
    [block] = chunk_blocks(sampled, calls)
    assert block.in_part.tolist() == [True, True, False, False, False]
    write_chunks(tmp_path / "chunks.tsv", [block], None)
    expected = EXPECTED.replace("9 18 0 NA NA NA NA", "9 18 NA NA NA NA not_sampled").replace(
        "9 12 0 NA NA NA NA", "9 12 NA NA NA NA not_sampled"
    )
    text = (tmp_path / "chunks.tsv").read_text()
    assert text.replace("\t", " ") == f"{CHUNKS_HEADER}\n{expected}".replace("\t", " ")


def test_bed_holds_the_viral_chunks_by_places_from_0(tmp_path: Path, calls: ChunkCalls) -> None:
    write_bed(tmp_path / "chunks.bed", chunk_blocks(origin(), calls))
    assert (tmp_path / "chunks.bed").read_text() == (
        "mixed\t16\t25\tmixed_chunk_3\t900\t+\ntied\t0\t10\ttied_chunk_1\t500\t-\n"
    )


def test_no_records_leave_the_header_only(tmp_path: Path) -> None:
    none = np.empty(0, np.int64)
    calls = summarise_chunks(none, none, none, none, np.empty((0, 2), np.float32))
    empty = OrfOrigin(Contigs(), places, none, none, none, none, none.astype(np.int8), {})
    write_chunks(tmp_path / "chunks.tsv", chunk_blocks(empty, calls), None)
    write_bed(tmp_path / "chunks.bed", chunk_blocks(empty, calls))
    assert (tmp_path / "chunks.tsv").read_text() == f"{CHUNKS_HEADER}\n"
    assert (tmp_path / "chunks.bed").read_text() == ""


@pytest.mark.parametrize(("record", "chunk"), [(2, 0), (-1, 0), (0, 1), (0, -1)])
def test_orf_outside_the_chunks_raises(record: int, chunk: int) -> None:
    with pytest.raises(ValueError, match="outside the chunks of the 2 records"):
        summarise_chunks(
            np.array([1, 1]), np.array([record]), np.array([chunk]), np.array([0]),
            np.ones((1, 2), np.float32),
        )  # fmt: skip


@pytest.mark.parametrize("shape", [(1, 2), (2, 1), (2,)])
def test_scores_of_wrong_shape_raise(shape: tuple[int, ...]) -> None:
    two = np.array([0, 0])
    with pytest.raises(ValueError, match="2 ORFs need two scores each"):
        summarise_chunks(np.array([1]), two, two, two, np.ones(shape, np.float32))
