"""Viral stretches within records, worked out by hand."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from virnucpro_pl.contracts import ChunkPlaces, OrfOrigin
from virnucpro_pl.output import chunk_table
from virnucpro_pl.output.chunk_table import ChunkCalls, chunk_blocks, summarise_chunks
from virnucpro_pl.output.regions import REGIONS_HEADER, find_regions, write_regions

SIZE = 10


def calls_of(*records: str) -> ChunkCalls:
    """Make chunks by letters: V and W called virus (0.75 and 1.0), o others, - without a score."""
    letters = "".join(records)
    virus = {"V": 0.75, "W": 1.0, "o": 0.25}
    orfs = [i for i, letter in enumerate(letters) if letter != "-"]
    n_chunks = np.array([len(chunks) for chunks in records])
    owner = np.repeat(np.arange(len(records)), n_chunks)
    number = np.concatenate([np.arange(n) for n in n_chunks])
    score = np.array([virus[letters[i]] for i in orfs], np.float32)
    scores = np.stack([1 - score, score], axis=1)
    return summarise_chunks(n_chunks, owner[orfs], number[orfs], np.zeros(len(orfs)), scores)


def found(*records: str, gap: int = 1, least: int = 3) -> list[tuple[int, ...]]:
    """Give record, number, first and last chunk in it, and viral chunks of each region."""
    calls = calls_of(*records)
    regions = find_regions(calls, gap, least)
    begin = (np.cumsum(calls.n_chunks) - calls.n_chunks)[regions.record]
    columns = regions.record, regions.number, regions.first - begin, regions.last - begin
    return list(zip(*(column.tolist() for column in (*columns, regions.n_viral)), strict=True))


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ("VVV", [(0, 1, 0, 2, 3)]),
        ("oVVVo", [(0, 1, 1, 3, 3)]),
        ("VV", []),
        ("VVoV", []),
        ("V-VV", [(0, 1, 0, 3, 3)]),
        ("V-V-V", [(0, 1, 0, 4, 3)]),
        ("V--VV", []),
        ("VVV--VVVV", [(0, 1, 0, 2, 3), (0, 2, 5, 8, 4)]),
        ("-VVV-", [(0, 1, 1, 3, 3)]),  # no further than its viral chunks
        ("VVV-oVVV", [(0, 1, 0, 2, 3), (0, 2, 5, 7, 3)]),
        ("VVo-VVV", [(0, 1, 4, 6, 3)]),
        ("---", []),
        ("ooo", []),
        ("", []),
    ],
)
def test_regions_of_a_record(chunks: str, expected: list[tuple[int, ...]]) -> None:
    assert found(chunks) == expected


def test_regions_never_reach_into_the_next_record() -> None:
    assert found("VV", "VV", "", "oVVV", "V") == [(3, 1, 1, 3, 3)]
    assert found("oVVV", "VVV-V") == [(0, 1, 1, 3, 3), (1, 1, 0, 4, 4)]


@pytest.mark.parametrize(
    ("gap", "least", "expected"),
    [
        (0, 3, []),
        (0, 2, [(0, 1, 3, 4, 2)]),
        (0, 1, [(0, 1, 0, 0, 1), (0, 2, 3, 4, 2), (0, 3, 6, 6, 1)]),
        (1, 1, [(0, 1, 0, 0, 1), (0, 2, 3, 6, 3)]),
        (2, 4, [(0, 1, 0, 6, 4)]),
        (2, 5, []),
    ],
)
def test_options_bound_gaps_and_viral_chunks(
    gap: int, least: int, expected: list[tuple[int, ...]]
) -> None:
    assert found("V--VV-V", gap=gap, least=least) == expected


class Contigs:
    """Records with random letters, of which each chunk is ten and begins eight behind the last."""

    def __init__(self, *lengths: int) -> None:
        self.lengths = np.array(lengths)
        draw = np.random.default_rng(0).choice
        self.letters = [bytes(draw(list(b"ACGT"), n).astype(np.uint8)) for n in lengths]

    def ids(self, rows: np.ndarray) -> list[str]:
        return [f"c.{row}" for row in rows]

    def sequences(self, rows: np.ndarray) -> list[bytes]:
        return [self.letters[row] for row in rows]


def written(
    folder: Path, contigs: Contigs, *records: str, in_part: tuple[int, ...] = (), **options
) -> int:
    calls = calls_of(*records)

    def places(rows: np.ndarray) -> ChunkPlaces:
        start = np.concatenate([8 * np.arange(calls.n_chunks[row]) for row in rows])
        lengths = np.repeat(contigs.lengths[rows], calls.n_chunks[rows])
        owner = np.repeat(rows, calls.n_chunks[rows])
        is_sampled = ~(np.isin(owner, in_part) & (start == 24))  # all but the fourth of each
        return ChunkPlaces(start, np.minimum(SIZE, lengths - start), is_sampled)

    none = np.empty(0, np.int64)
    counts = calls.n_chunks, calls.n_chunks
    origin = OrfOrigin(contigs, places, *counts, none, none, none.astype(np.int8), {})
    given = {"gap": 1, "least": 3, "compress": False, **options}
    return write_regions(folder, chunk_blocks(origin, calls), contigs, **given)


@pytest.mark.parametrize("size", [1, 1 << 16])
def test_table_and_bases_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(chunk_table, "_CHUNKS", size)
    contigs = Contigs(98, 58, 98, 81)
    # In the third, 5 chunks of 0.75 and 4 of 1.0.
    records = ("VVV--VVVVooo", "oooVVV-", "oVV-VWVVWWWo", "VVVVVVVV--")
    assert written(tmp_path, contigs, *records) == 5
    assert (tmp_path / "regions.tsv").read_text().replace("\t", " ") == (
        REGIONS_HEADER.replace("\t", " ") + "c.0 c.0|region_1 1 26 3 3 0.75 partial\n"
        "c.0 c.0|region_2 41 74 4 4 0.75 partial\n"
        "c.1 c.1|region_1 25 50 3 3 0.75 partial\n"
        "c.2 c.2|region_1 9 90 10 9 0.8611111 partial\n"
        "c.3 c.3|region_1 1 66 8 8 0.75 partial\n"
    )
    lines = (tmp_path / "regions.fasta").read_bytes().splitlines()
    assert lines[:2] == [b">c.0|region_1 1-26", contigs.letters[0][:26]]
    assert lines[6:9] == [
        b">c.2|region_1 9-90",
        contigs.letters[2][8:68],
        contigs.letters[2][68:90],
    ]


@pytest.mark.parametrize("size", [1, 1 << 16])
def test_sampled_records_have_no_regions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(chunk_table, "_CHUNKS", size)
    contigs, records = Contigs(58, 58, 58), ("VVV-VVV", "VVV-VVV", "oooVVV-")
    assert written(tmp_path, contigs, *records, in_part=(0, 2)) == 1
    [line] = (tmp_path / "regions.tsv").read_text().splitlines()[1:]
    assert line == "c.1\tc.1|region_1\t1\t58\t7\t6\t0.75\twhole"
    assert (tmp_path / "regions.fasta").read_bytes().count(b">") == 1


@pytest.mark.parametrize(("length", "extent"), [(28, "whole"), (29, "partial")])
def test_region_of_nine_tenths_is_whole(tmp_path: Path, length: int, extent: str) -> None:
    written(tmp_path, Contigs(length), "VVV-")  # 26 bases: nine tenths of 28.9
    assert (tmp_path / "regions.tsv").read_text().endswith(f"\t{extent}\n")


def test_no_regions_leave_a_header_and_an_empty_file(tmp_path: Path) -> None:
    assert written(tmp_path, Contigs(26), "ooo") == 0
    assert (tmp_path / "regions.tsv").read_text() == REGIONS_HEADER
    assert (tmp_path / "regions.fasta").read_bytes() == b""


def test_compressed_bases_are_the_same_every_time(tmp_path: Path) -> None:
    contigs = Contigs(26)
    written(tmp_path, contigs, "VVV")
    plain = (tmp_path / "regions.fasta").read_bytes()
    written(tmp_path, contigs, "VVV", compress=True)
    packed = (tmp_path / "regions.fasta.gz").read_bytes()
    assert gzip.decompress(packed) == plain
    written(tmp_path, contigs, "VVV", compress=True)
    assert (tmp_path / "regions.fasta.gz").read_bytes() == packed
