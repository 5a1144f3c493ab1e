"""Chunks and open reading frames against the rules, written out slowly, and against VirNucPro."""

import gzip
import json
import math
from collections.abc import Iterator
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virnucpro_pl.input import orfs as module
from virnucpro_pl.input.orfs import (
    FRAMES,
    Orfs,
    count_unusual_letters,
    find_orfs,
    is_sampled,
    orf_id,
    plan_all_chunks,
    plan_chunks,
    reverse_complement,
    sample_sizes,
    translate,
)

AMINO_ACIDS = "FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG"
CODE = dict(zip(map("".join, product("TCAG", repeat=3)), AMINO_ACIDS, strict=True))

Rows = list[tuple[str, str, str]]

READ = "CGTGTGCTAAGGAAGGGCCATATCGCGATG{}TCCTCATTGTGTAGGTTGGATAACGGTTATTACCAGATGATGTGTCTG"

# Inputs and the ids, nucleotide strings and proteins that VirNucPro writes for them.
WRITTEN_BY_VIRNUCPRO: dict[str, tuple[str, Rows]] = {
    "two_nt": ("AC", []),
    "three_nt": ("ATG", [("F1", "ATG", "M"), ("R1", "CAT", "H")]),
    "four_nt": (
        "ATGC",
        [("F1", "ATGC", "M"), ("F2", "TGC", "C"), ("R1", "GCAT", "A"), ("R2", "CAT", "H")],
    ),
    "five_nt": (
        "ATGCA",
        [
            ("F1", "ATGC", "M"),
            ("F2", "TGCA", "C"),
            ("F3", "GCA", "A"),
            ("R1", "TGCA", "C"),
            ("R2", "GCAT", "A"),
            ("R3", "CAT", "H"),
        ],
    ),
    "stop3": ("TAA", [("R1", "TTA", "L")]),
    "all_N": ("N" * 30, []),
    "all_gap": ("-" * 12, []),
    "rna_all": (
        "AUGGCUAGCAAAGGUAAACGUAUUGCAGAACUG",
        [
            ("F1", "AUGGCUAGCAAAGGUA", "SKKAE"),
            ("F2", "UGGCUAGCAAAGGUAA", "AKNQN"),
            ("F3", "GGCUAGCAAAGGUAAA", "GQRTR"),
            ("R1", "CUGTTCTGCUUTUCGT", "FCFFA"),
            ("R2", "UGTTCTGCUUTUCGTT", "SRPLA"),
            ("R3", "GTTCTGCUUTUCGTTT", "VLVLC"),
        ],
    ),
    "gap_ends": (
        "---GCCGCCGCCGCCGCCGCCGCCGCC-",
        [
            ("F1", "---GCCGCCGCCGCCGCCGCCGCCG", "AAAAAAAA"),
            ("F2", "--GCCGCCGCCGCCGCCGCCGC", "PPPPPPP"),
            ("F3", "-GCCGCCGCCGCCGCCGCCGCC", "RRRRRRR"),
            ("R1", "-GGCGGCGGCGGCGGCGGCGGC", "RRRRRRR"),
            ("R2", "GGCGGCGGCGGCGGCGGCGGCGGC-", "GGGGGGGG"),
            ("R3", "GCGGCGGCGGCGGCGGCGGCGG", "AAAAAAA"),
        ],
    ),
}

# What VirNucPro's own functions gave.
DATA = Path(__file__).parent.parent / "data" / "virnucpro"
FUNCTIONS = json.loads(gzip.decompress((DATA / "functions.json.gz").read_bytes()))
CHUNKS = gzip.decompress((DATA / "chunks.tsv.gz").read_bytes()).decode().splitlines()[1:]


def pack(sequences: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Lay sequences one after another, with their offsets."""
    letters = np.frombuffer("".join(sequences).encode(), dtype=np.uint8)
    return letters, np.cumsum([0, *map(len, sequences)])


def strings(letters: np.ndarray, offsets: np.ndarray) -> list[str]:
    """Take the strings out of a concatenation."""
    return [letters[begin:end].tobytes().decode() for begin, end in pairwise(offsets)]


def rows(orfs: Orfs, ids: list[str]) -> Rows:
    """State the ORFs as (id, nucleotides, protein)."""
    nucleotides = strings(orfs.nucleotides, orfs.nucleotide_offsets)
    proteins = strings(orfs.proteins, orfs.protein_offsets)
    return list(zip(orfs.ids(ids), nucleotides, proteins, strict=True))


def reference_chunks(sequence: str, size: int) -> list[str]:
    """Cut a record by the rule, one chunk after another."""
    n = math.ceil(len(sequence) / size)
    chunks, start = [], 0
    for k in range(n):
        lo, r = divmod(n * size - len(sequence), n)
        chunks.append(sequence[start : start + size])
        start += size - (lo + 1 if k < lo + r else lo)
    return chunks


def reference_orfs(record: str, sequence: str, size: int) -> Iterator[tuple[str, str, str]]:
    """Translate a record by the rule, one codon after another."""
    for k, chunk in enumerate(reference_chunks(sequence.upper(), size)):
        other = "".join({"A": "T", "C": "G", "G": "C", "T": "A"}.get(c, c) for c in chunk)
        for sign, strand in (("F", chunk), ("R", other[::-1])):
            for f in range(3):
                codons = [strand[i : i + 3] for i in range(f, len(strand), 3)]
                protein = "".join(CODE.get(codon, "") for codon in codons)
                if protein and "*" not in protein:
                    nucleotides = strand[f : f + 3 * len(protein) + 1]
                    yield f"{record}_chunk_{k + 1}{sign}{f + 1}", nucleotides, protein


@st.composite
def sequences(draw: st.DrawFn) -> str:
    """Draw a sequence; most alphabets have few stops, so that frames stay open."""
    alphabets = ("ACGT", "acgt", "GC", "ACG", "ACGN", "GCGCGCT-", "AGCUacgu", "N")
    everything = "ACGTACGTRYSWKMBDHVNU-.*X0189acgtrynux"
    alphabet = draw(st.sampled_from((*alphabets, everything)))
    length = draw(st.integers(0, 12) | st.integers(0, 2000))
    return "".join(draw(st.randoms(use_true_random=False)).choices(alphabet, k=length))


@pytest.mark.parametrize(
    ("size", "length", "expected"),
    [
        (500, 0, []),
        (500, 1, [(0, 1)]),
        (500, 500, [(0, 500)]),
        (500, 501, [(0, 500), (250, 251)]),
        (500, 999, [(0, 500), (499, 500)]),
        (500, 1001, [(0, 500), (333, 500), (666, 335)]),
        (500, 1234, [(0, 500), (411, 500), (822, 412)]),
        (500, 1501, [(0, 500), (375, 500), (750, 500), (1125, 376)]),
        (300, 1234, [(0, 300), (246, 300), (492, 300), (738, 300), (984, 250)]),
    ],
)
def test_plan_chunks_published_lengths_follow_table(
    size: int, length: int, expected: list[tuple[int, int]]
) -> None:
    chunks = plan_chunks(length, size)
    assert chunks.dtype == np.int64
    assert chunks.shape == (len(expected), 2)
    assert chunks.tolist() == [list(pair) for pair in expected]


@given(st.integers(0, 20_000), st.integers(1, 700))
def test_plan_chunks_any_length_covers_record_without_gap(length: int, size: int) -> None:
    starts, lengths = plan_chunks(length, size).T
    assert np.all(lengths[:-1] == min(size, length))
    assert np.all((lengths >= 1) & (lengths <= size))
    assert np.all(starts[1:] <= (starts + lengths)[:-1])
    assert np.all(np.diff(starts) > 0)
    assert starts.tolist()[:1] == [0] * (length > 0)
    assert (starts + lengths).tolist()[-1:] == [length] * (length > 0)


def test_plan_all_chunks_many_records_equal_single_ones() -> None:
    lengths = np.array([0, 501, 7, 0, 1234, 500, 0])
    chunks = plan_all_chunks(lengths, 500)
    assert chunks.per_record.tolist() == [0, 2, 1, 0, 3, 1, 0]
    assert chunks.record.tolist() == [1, 1, 2, 4, 4, 4, 5]
    assert chunks.chunk.tolist() == [0, 1, 0, 0, 1, 2, 0]
    table = np.stack([chunks.start, chunks.length], axis=1)
    assert np.array_equal(table, np.concatenate([plan_chunks(n, 500) for n in lengths]))


@given(st.integers(1, 3_000), st.integers(1, 3_500))
def test_sample_is_evenly_spaced_with_first_and_last(n: int, most: int) -> None:
    sample = np.flatnonzero(is_sampled(np.arange(n), np.full(n, n), most))
    assert len(sample) == min(n, most)
    if len(sample) > 1:
        assert (sample[0], sample[-1]) == (0, n - 1)
        steps = np.diff(sample)
        assert steps.min() >= 1
        assert steps.max() - steps.min() <= 1
    else:
        assert abs(sample[0] - (n - 1) / 2) <= 0.5


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        *((1, [4]), (2, [0, 9]), (3, [0, 4, 9]), (4, [0, 3, 6, 9]), (9, [*range(8), 9])),
        *((10, [*range(10)]), (10**30, [*range(10)]), (None, [*range(10)])),
    ],
)
def test_sample_of_ten_chunks_by_hand(most: int | None, expected: list[int]) -> None:
    sample = is_sampled(np.arange(10), np.full(10, 10), most)
    assert np.flatnonzero(sample).tolist() == expected
    assert sample_sizes(np.array([10, 0]), most).tolist() == [len(expected), 0]


@given(st.lists(st.integers(0, 900), max_size=6), st.integers(1, 9), st.integers(0, 90))
def test_plan_all_chunks_sampled_ones_lie_where_they_did(
    lengths: list[int], most: int, shortest: int
) -> None:
    whole = plan_all_chunks(np.array(lengths, np.int64), 50, shortest)
    some = plan_all_chunks(np.array(lengths, np.int64), 50, shortest, most)
    assert whole.is_sampled.all()
    for ours, theirs in zip(some._replace(is_sampled=whole.is_sampled), whole, strict=True):
        assert np.array_equal(ours, theirs)
    sampled = np.bincount(some.record[some.is_sampled], minlength=len(lengths))
    assert sampled.tolist() == np.minimum(whole.per_record, most).tolist()


@pytest.mark.parametrize(("length", "size"), [(10, 0), (10, -1), (-1, 500)])
def test_plan_chunks_impossible_numbers_raise(length: int, size: int) -> None:
    with pytest.raises(ValueError, match="give"):
        plan_chunks(length, size)


def test_translate_every_codon_follows_standard_code() -> None:
    assert translate("".join(CODE).encode()).decode() == AMINO_ACIDS


@pytest.mark.parametrize(
    ("sequence", "protein"),
    [(b"", b""), (b"AT", b""), (b"ATGNNNTAA", b"M*"), (b"ATGATUATGA", b"MM"), (b"atg", b"")],
)
def test_translate_odd_codons_give_no_residue(sequence: bytes, protein: bytes) -> None:
    assert translate(sequence) == protein


def test_reverse_complement_changes_acgt_only() -> None:
    assert reverse_complement(b"AACGTNRYU-.*X7") == b"7X*.-UYRNACGTT"


def test_orf_id_counts_chunks_from_one() -> None:
    assert [orf_id("a_chunk_7", 0, 0), orf_id("b", 11, 5)] == [
        "a_chunk_7_chunk_1F1",
        "b_chunk_12R3",
    ]


@pytest.mark.parametrize("name", WRITTEN_BY_VIRNUCPRO)
def test_find_orfs_short_records_as_virnucpro(name: str) -> None:
    sequence, written = WRITTEN_BY_VIRNUCPRO[name]
    expected = [(f"{name}_chunk_1{frame}", *strings) for frame, *strings in written]
    for text in (sequence, sequence.lower()):
        assert rows(find_orfs(*pack([text])), [name]) == expected


@pytest.mark.parametrize(
    ("insert", "protein"),
    [
        ("NNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNTCCTT", "RVLRKGHIAMLSSLCRLDNGYYQMMCL"),
        ("AGG*GGGGGGTATCGAGCCTGTGTTACCCGGTCCTT", "RVLRKGHIAMRGVSSLCYPVLSSLCRLDNGYYQMMCL"),
        ("AGGXGGGGGGTATCGAGCCTGTGTTACCCGGTCCTT", "RVLRKGHIAMRGVSSLCYPVLSSLCRLDNGYYQMMCL"),
        ("AGGTGGGGGGTATCGRYSWKMBDHVACCCGGTCCTT", "RVLRKGHIAMRWGVSPVLSSLCRLDNGYYQMMCL"),
    ],
)
def test_find_orfs_unusual_letters_shorten_protein_and_nucleotides(
    insert: str, protein: str
) -> None:
    read = READ.format(insert)
    found = {row[0]: row[1:] for row in rows(find_orfs(*pack([read])), ["r"])}
    assert found["r_chunk_1F1"] == (read[: 3 * len(protein) + 1], protein)


@settings(deadline=None)
@given(st.lists(sequences(), max_size=4), st.integers(3, 600))
def test_find_orfs_random_records_equal_slow_reference(records: list[str], size: int) -> None:
    ids = [f"record_{i}" for i in range(len(records))]
    orfs = find_orfs(*pack(records), size)
    expected = [list(reference_orfs(*pair, size)) for pair in zip(ids, records, strict=True)]
    assert rows(orfs, ids) == [row for found in expected for row in found]
    assert orfs.n_orfs.tolist() == [len(found) for found in expected]
    assert orfs.n_chunks.tolist() == [len(reference_chunks(text, size)) for text in records]
    assert orfs.ids(ids) == [
        f"{ids[i]}_chunk_{k + 1}{FRAMES[f]}"
        for i, k, f in zip(orfs.record, orfs.chunk, orfs.frame, strict=True)
    ]


@pytest.mark.parametrize(("bases", "n_chunks"), [(1, 1), (350, 10_000), (10_000, 3), (777, 2)])
def test_find_orfs_small_runs_change_nothing(
    bases: int, n_chunks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = np.random.default_rng(0).choice(np.frombuffer(b"ACGCGNC", dtype=np.uint8), 5003)
    offsets = np.array([0, 1, 1, 40, 1300, 1302, 5003])
    expected = find_orfs(letters, offsets, 100)
    monkeypatch.setattr(module, "_RUN_BASES", bases)
    monkeypatch.setattr(module, "_RUN_CHUNKS", n_chunks)
    assert len(expected.frame) > 50
    for ours, whole in zip(find_orfs(letters, offsets, 100), expected, strict=True):
        assert np.array_equal(ours, whole)


@settings(deadline=None)
@given(st.lists(sequences(), max_size=4), st.integers(3, 60), st.integers(1, 7))
def test_find_orfs_of_a_sample_are_those_of_its_chunks(
    records: list[str], size: int, most: int
) -> None:
    ids = [f"record_{i}" for i in range(len(records))]
    whole, some = (find_orfs(*pack(records), size, max_chunks=m) for m in (None, most))
    kept = is_sampled(whole.chunk, whole.n_chunks[whole.record], most)
    expected = [row for row, is_kept in zip(rows(whole, ids), kept, strict=True) if is_kept]
    assert rows(some, ids) == expected
    assert some.n_chunks.tolist() == whole.n_chunks.tolist()
    counts = np.bincount(whole.record[kept], minlength=len(records))
    assert some.n_orfs.tolist() == counts.tolist()


@pytest.mark.parametrize(("bases", "n_chunks"), [(1, 1), (350, 10_000), (10_000, 3), (777, 2)])
def test_find_orfs_of_a_sample_in_small_runs(
    bases: int, n_chunks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = np.random.default_rng(1).choice(np.frombuffer(b"ACGCGNC", dtype=np.uint8), 9003)
    offsets = np.array([0, 1, 1, 40, 1300, 1302, 9003])
    expected = find_orfs(letters, offsets, 100, 2, max_chunks=11)
    monkeypatch.setattr(module, "_RUN_BASES", bases)
    monkeypatch.setattr(module, "_RUN_CHUNKS", n_chunks)
    assert len(expected.frame) > 30
    again = find_orfs(letters, offsets, 100, 2, max_chunks=11)
    for ours, whole in zip(again, expected, strict=True):
        assert np.array_equal(ours, whole)


def test_find_orfs_translates_no_more_than_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    translated = []
    translate_all = module._residue_at_each_base

    def counted(strand: bytes) -> bytes:
        translated.append(len(strand))
        return translate_all(strand)

    monkeypatch.setattr(module, "_residue_at_each_base", counted)
    letters = np.full(100_000, ord("A"), np.uint8)
    find_orfs(letters, np.array([0, 400, 90_400, 100_000]), 500, 1_000, max_chunks=4)
    assert sum(translated) <= 2 * 8 * 500


def test_find_orfs_slice_of_offsets_numbers_records_from_zero() -> None:
    letters, offsets = pack(["ATG", "GGGCCC", "ATGC", "TAA"])
    found = find_orfs(letters, offsets[1:4])
    assert found.n_orfs.tolist() == [6, 4]
    assert rows(found, ["b", "c"]) == rows(find_orfs(*pack(["GGGCCC", "ATGC"])), ["b", "c"])


def test_find_orfs_no_record_gives_empty_arrays() -> None:
    found = find_orfs(*pack([]))
    assert [len(field) for field in found] == [0, 1, 0, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("offsets", [[], [0, 4], [-1, 3], [0, 3, 1]])
def test_find_orfs_offsets_outside_letters_raise(offsets: list[int]) -> None:
    with pytest.raises(ValueError, match=r"offsets|bases"):
        find_orfs(np.frombuffer(b"ATG", dtype=np.uint8), np.array(offsets, dtype=np.int64))


def test_count_unusual_letters_ignores_case_and_iupac() -> None:
    letters = np.frombuffer(b"ACGTNRYKMSWBDHVacgtnrykmswbdhvU-uu*.-X0", dtype=np.uint8)
    counts = count_unusual_letters(letters)
    assert counts == {"U": 3, "-": 2, "*": 1, ".": 1, "X": 1, "0": 1}
    assert list(counts)[:2] == ["U", "-"]


@pytest.mark.parametrize("record", FUNCTIONS, ids=lambda record: record["id"])
def test_frames_of_a_record_equal_virnucpros(record: dict[str, Any]) -> None:
    sequence = record["sequence"].upper().encode()
    assert reverse_complement(sequence).decode() == record["revcomp_upper"]
    frames = [s[f:] for s in (sequence, reverse_complement(sequence)) for f in range(3)]
    assert [translate(frame).decode() for frame in frames] == record["translate_dna_upper"]
    # As one chunk, which that function does not number; empty proteins are dropped behind it.
    found = rows(find_orfs(*pack([record["sequence"]]), max(1, len(sequence))), [""])
    named = [(name.replace("_chunk_1", record["id"]), *strings) for name, *strings in found]
    orfs = [
        (orf["seqid"], orf["nucleotide"], orf["protein"]) for orf in record["identify_seq_upper"]
    ]
    assert named == [orf for orf in orfs if orf[2]]


def test_plan_chunks_table_equals_virnucpros() -> None:
    assert len(CHUNKS) == 1758
    for line in CHUNKS:
        size, length, count, places = line.split("\t")
        chunks = [f"{start}:{bases}" for start, bases in plan_chunks(int(length), int(size))]
        assert len(chunks) == int(count)
        shown = chunks if len(chunks) <= 6 else chunks[:2] + chunks[-2:]
        assert shown == places.split(",")
