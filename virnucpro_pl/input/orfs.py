"""Chunks of a record and the open reading frames in them, by the rules of VirNucPro.

The published classifier was trained on features made by exactly these rules (VirNucPro, Li et al.
2025, Briefings in Bioinformatics 26(3) bbaf224), so the odd ones are kept on purpose; the
docstrings say which they are.

Chunks are translated a run at a time: the run and its reverse complement form one strand, each base
of which gets the residue of the codon beginning there, so that a frame of a chunk is every third
residue of a stretch of it.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro_pl.contracts import FRAMES

# NCBI translation table 1 (standard code), codons in the order TTT, TTC, TTA, TTG, TCT, ..., GGG.
_BASES = b"TCAG"
_STANDARD_CODE = b"FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG"
_NO_RESIDUE = b"\0"
_IUPAC_DNA = b"ACGTRYSWKMBDHVN"

# A letter is a digit of base 5 (T, C, A, G, anything else), so that a codon fits a byte.
_DIGIT = bytes(_BASES.index(letter) if letter in _BASES else 4 for letter in range(256))
_COMPLEMENT = bytes.maketrans(b"ACGT", b"TGCA")
_RESIDUE = bytearray(256)
for (_a, _b, _c), _residue in zip(product(range(4), repeat=3), _STANDARD_CODE, strict=True):
    _RESIDUE[25 * _a + 5 * _b + _c] = _residue

# Bounds of a run of chunks: it takes some 20 bytes of working memory a base and 500 a chunk.
_RUN_BASES = 1 << 20
_RUN_CHUNKS = 1 << 15


POOLED_RESIDUES = 1024
"""VirNucPro stops its mean over residues here, its input not being cut (Li et al. 2025)."""
POOLING = f"mean of the first {POOLED_RESIDUES} residues"
"""What an output says of it."""
MEAN_OF_RESIDUES = "mean of residues"
"""What it says of the mean over all of them, the same up to so many."""


class Chunks(NamedTuple):
    """Chunks of many records, in the order of the records and of their places in them."""

    record: NDArray[np.int64]
    """(K,) index of the record."""
    chunk: NDArray[np.int64]
    """(K,) number of the chunk in its record, from 0."""
    start: NDArray[np.int64]
    """(K,) first base of the chunk in its record, from 0."""
    length: NDArray[np.int64]
    """(K,) bases."""
    is_sampled: NDArray[np.bool_]
    """(K,) whether the chunk is computed: each one, unless its record has more than so many."""
    per_record: NDArray[np.int64]
    """(R,) chunks of each record."""


class Orfs(NamedTuple):
    """Open reading frames of many records, ordered by record, chunk and frame."""

    nucleotides: NDArray[np.uint8]
    """(B,) upper-case letters of all nucleotide strings, one after another."""
    nucleotide_offsets: NDArray[np.int64]
    """(M + 1,) string m is nucleotides[nucleotide_offsets[m] : nucleotide_offsets[m + 1]]."""
    proteins: NDArray[np.uint8]
    """(P,) one-letter residues of all proteins, one after another."""
    protein_offsets: NDArray[np.int64]
    """(M + 1,) protein m is proteins[protein_offsets[m] : protein_offsets[m + 1]]."""
    record: NDArray[np.int64]
    """(M,) index of the record."""
    chunk: NDArray[np.int64]
    """(M,) number of the chunk in its record, from 0."""
    frame: NDArray[np.int64]
    """(M,) index into FRAMES."""
    n_chunks: NDArray[np.int64]
    """(R,) chunks of each record, those without an ORF and those not sampled included."""
    n_orfs: NDArray[np.int64]
    """(R,) ORFs of each record, in the sampled chunks."""

    def ids(self, record_ids: Sequence[str]) -> list[str]:
        """Name every ORF, given the R ids of the records."""
        rows = zip(self.record.tolist(), self.chunk.tolist(), self.frame.tolist(), strict=True)
        return [orf_id(record_ids[record], chunk, frame) for record, chunk, frame in rows]


def orf_id(record_id: str, chunk: int, frame: int) -> str:
    """Name an ORF by record, chunk (counted from 0 here, from 1 in the name) and frame (0 to 5)."""
    return f"{record_id}_chunk_{chunk + 1}{FRAMES[frame]}"


def plan_chunks(length: int, size: int) -> NDArray[np.int64]:
    """Cut one record of so many bases; (n, 2) start and length. The rule: plan_all_chunks."""
    chunks = plan_all_chunks(np.array([length]), size)
    return np.stack([chunks.start, chunks.length], axis=1)


def plan_all_chunks(
    lengths: NDArray[np.int64], size: int, min_length: int = 0, max_chunks: int | None = None
) -> Chunks:
    """Cut many records into overlapping chunks; an empty record, or one too short, has none.

    n = ceil(length / size) chunks have T = n * size - length bases too many. With lo, r =
    divmod(T, n), chunks k and k + 1 overlap by lo bases, and by one more while k < lo + r. On
    purpose as in VirNucPro: T is divided by n and not by the n - 1 overlaps, so that the last chunk
    is often shorter than the others.

    Args:
        lengths: (R,) bases of each record.
        size: Bases of a chunk; the published classifiers have 500 or 300.
        min_length: Bases of the shortest record that is cut.
        max_chunks: Chunks of a record that are computed at most, see `is_sampled`; None for all.

    Raises:
        ValueError: If size is below 1 or a length below 0.
    """
    if size < 1:
        raise ValueError(f"chunks of {size} bases cannot be cut; give a length of 1 or more")
    lengths = np.asarray(lengths, dtype=np.int64)
    if lengths.size and lengths.min() < 0:
        raise ValueError(f"record {lengths.argmin()} has {lengths.min()} bases; give 0 or more")
    lengths = np.where(lengths < min_length, 0, lengths)
    n = -(-lengths // size)
    lo, r = np.divmod(n * size - lengths, np.maximum(n, 1))
    record = np.repeat(np.arange(len(lengths)), n)
    chunk = np.arange(len(record)) - (np.cumsum(n) - n)[record]
    start = chunk * (size - lo[record]) - np.minimum(chunk, (lo + r)[record])
    sampled = is_sampled(chunk, n[record], max_chunks)
    return Chunks(record, chunk, start, np.minimum(size, lengths[record] - start), sampled, n)


def sample_sizes(n_chunks: NDArray[np.int64], max_chunks: int | None) -> NDArray[np.int64]:
    """Count the chunks (R,) that are computed of records of so many: all, or max_chunks at most."""
    if max_chunks is None:
        return n_chunks
    return np.minimum(n_chunks, min(max_chunks, np.iinfo(np.int64).max))


def is_sampled(
    chunk: NDArray[np.int64], n_chunks: NDArray[np.int64], max_chunks: int | None
) -> NDArray[np.bool_]:
    """Tell whether chunks are in the sample of their record; (K,).

    A record of n chunks, more than m = max_chunks, is sampled evenly: number j of the sample, from
    0 to m - 1, is chunk floor(j * (n - 1) / (m - 1)), so that the first and the last one are in it.
    A sample of one is the chunk in the middle.

    Args:
        chunk: (K,) number of each chunk in its record, from 0.
        n_chunks: (K,) chunks of its record.
        max_chunks: Chunks of a sample, at least 1; None for all.
    """
    if max_chunks is None:
        return np.ones(len(chunk), np.bool_)
    if max_chunks == 1:
        return np.asarray(chunk == (n_chunks - 1) // 2)
    # Chunk k is such a floor if a multiple of n - 1 is k * (m - 1) or one of the m - 2 behind it.
    steps = sample_sizes(n_chunks, max_chunks) - 1
    return np.asarray(-chunk * steps % np.maximum(n_chunks - 1, 1) < np.maximum(steps, 1))


def reverse_complement(sequence: bytes) -> bytes:
    """Read the other strand of upper-case DNA.

    On purpose as in VirNucPro: only A, C, G and T are complemented; N and other IUPAC codes, U, `-`
    and whatever else stands there change place but not value.
    """
    return sequence.translate(_COMPLEMENT)[::-1]


def translate(sequence: bytes) -> bytes:
    """Translate upper-case DNA from its first base by the standard code, stops as `*`.

    On purpose as in VirNucPro: a codon with a letter other than A, C, G, T gives no residue at all,
    not an X. One or two bases left at the end are ignored.
    """
    return _residue_at_each_base(sequence)[::3].replace(_NO_RESIDUE, b"")


def find_orfs(
    residues: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    size: int = 500,
    min_length: int = 0,
    max_chunks: int | None = None,
) -> Orfs:
    """Find the open reading frames of many records.

    On purpose as in VirNucPro: an ORF is a whole frame of a chunk whose translation is not empty
    and has no stop anywhere, the last codon included. There is no start codon and no minimum
    length. Its nucleotide string is strand[f : f + 3 * len(protein) + 1]: one base more than the
    codons where the chunk has it, and too short where codons gave no residue.

    Args:
        residues: (S,) letters of all records one after another, any bytes, upper or lower case.
        offsets: (R + 1,) record i is residues[offsets[i] : offsets[i + 1]]. The first need not be
            0: `offsets[i : j + 1]` of a larger table serves its records i to j, numbered from 0.
        size: Bases of a chunk.
        min_length: Bases of the shortest record that is searched.
        max_chunks: Chunks of a record that are searched at most, see `is_sampled`; None for all.

    Returns:
        The ORFs in the order record, chunk, F1, F2, F3, R1, R2, R3. Beside them the call holds no
        more than the table of chunks and one run of a million bases.

    Raises:
        ValueError: If size is below 1 or the offsets do not ascend within residues.
    """
    if len(offsets) == 0 or offsets[0] < 0 or offsets[-1] > len(residues):
        raise ValueError(f"the R + 1 offsets must lie within 0 and the {len(residues)} letters")
    chunks = plan_all_chunks(np.diff(offsets), size, min_length, max_chunks)
    sampled = np.flatnonzero(chunks.is_sampled)
    records, lengths = chunks.record[sampled], chunks.length[sampled]
    begins = np.asarray(offsets, dtype=np.int64)[records] + chunks.start[sampled]
    moved = begins - _skipped(begins, begins + lengths)
    places: list[tuple[int, int]] = []
    nucleotides: list[bytes] = []
    proteins: list[bytes] = []
    for lo, hi in _split_runs(moved, moved + lengths):
        run = _letters_of_run(residues, begins[lo:hi], lengths[lo:hi])
        found = _orfs_of_run(run, moved[lo:hi] - moved[lo], lengths[lo:hi])
        for chunk, frame, nucleotide, protein in found:
            places.append((lo + chunk, frame))
            nucleotides.append(nucleotide)
            proteins.append(protein)
    row, frames = np.array(places, dtype=np.int64).reshape(-1, 2).T
    record = records[row]
    return Orfs(
        *_concatenate(nucleotides),
        *_concatenate(proteins),
        record=record,
        chunk=chunks.chunk[sampled[row]],
        frame=frames,
        n_chunks=chunks.per_record,
        n_orfs=np.bincount(record, minlength=len(chunks.per_record)),
    )


def count_unusual_letters(residues: NDArray[np.uint8]) -> dict[str, int]:
    """Count the letters that are no IUPAC code of DNA in either case, most frequent first.

    VirNucPro takes U, X, `-`, `*`, digits and the like as they are; the counts are for the log.
    """
    counts: Counter[str] = Counter()
    for begin in range(0, len(residues), _RUN_BASES):
        run = residues[begin : begin + _RUN_BASES].tobytes().upper()
        counts.update(run.translate(None, _IUPAC_DNA).decode("latin-1"))
    return dict(counts.most_common())


def _residue_at_each_base(sequence: bytes) -> bytes:
    """Translate the codon at each base but the last two: n - 2 residues, NUL where it has none."""
    # bytes.translate looks up some times faster than numpy, which widens each index to 64 bits.
    digits = np.frombuffer(sequence.translate(_DIGIT), dtype=np.uint8)
    codons = digits[:-2] * 25 + digits[1:-1] * 5 + digits[2:]
    return codons.tobytes().translate(_RESIDUE)


def _split_runs(begins: NDArray[np.int64], ends: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield [lo, hi) of consecutive chunks within the bounds of a run, at least one chunk each."""
    lo = 0
    while lo < len(begins):
        within = int(np.searchsorted(ends, begins[lo] + _RUN_BASES, side="right"))
        hi = max(lo + 1, min(within, lo + _RUN_CHUNKS))
        yield lo, hi
        lo = hi


def _skipped(begins: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count the bases before each chunk (K,) that lie in none, from the first chunk on."""
    return np.cumsum(np.maximum(begins - np.append(begins[:1], ends[:-1]), 0))


def _letters_of_run(
    residues: NDArray[np.uint8], begins: NDArray[np.int64], lengths: NDArray[np.int64]
) -> bytes:
    """Give the upper-case letters of a run's chunks, without those that lie in none of them."""
    ends = begins + lengths
    gaps = np.flatnonzero(begins[1:] > ends[:-1])
    first, last = np.append(0, gaps + 1), np.append(gaps, -1)
    bounds = zip(begins[first].tolist(), ends[last].tolist(), strict=True)
    return b"".join(residues[begin:end].tobytes() for begin, end in bounds).upper()


def _orfs_of_run(
    run: bytes, begins: NDArray[np.int64], lengths: NDArray[np.int64]
) -> Iterator[tuple[int, int, bytes, bytes]]:
    """Yield (chunk, frame, nucleotides, protein) of the ORFs of a run's chunks, in order."""
    strand = run + reverse_complement(run)
    residues = _residue_at_each_base(strand)
    shift = np.array([0, 1, 2, 0, 1, 2])
    forward, reverse = begins[:, None], (len(strand) - begins - lengths)[:, None]
    begin = np.repeat(np.hstack([forward, reverse]), 3, axis=1)  # (K, 6) chunk on a frame's strand
    first = begin + shift  # (K, 6) first base of the frame
    stop = first + np.maximum(lengths[:, None] - shift, 0) // 3 * 3  # (K, 6) end of its codons
    chunk, frame = np.nonzero((first < stop) & _has_no_stop(residues, first, stop))
    bounds = (first[chunk, frame], stop[chunk, frame], begin[chunk, frame] + lengths[chunk])
    columns = (column.tolist() for column in (chunk, frame, *bounds))
    for k, f, lo, hi, limit in zip(*columns, strict=True):
        protein = residues[lo:hi:3].replace(_NO_RESIDUE, b"")
        if protein:
            yield k, f, strand[lo : min(lo + 3 * len(protein) + 1, limit)], protein


def _has_no_stop(
    residues: bytes, first: NDArray[np.int64], stop: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Tell for each element whether no residue of residues[first:stop:3] is a stop codon's."""
    stops = np.flatnonzero(np.frombuffer(residues, dtype=np.uint8) == ord("*"))
    span = len(residues) + 3
    # Ordered by phase (place modulo 3), then by place, a frame's first stop is its successor.
    phases = [stops[stops % 3 == phase] + phase * span for phase in range(3)]
    ordered = np.concatenate([*phases, [3 * span]])
    phase_begin = first % 3 * span
    return np.asarray(ordered[np.searchsorted(ordered, phase_begin + first)] >= phase_begin + stop)


def _concatenate(parts: list[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Join byte strings to one array and the (M + 1,) offsets of its parts."""
    offsets = np.zeros(len(parts) + 1, dtype=np.int64)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    # A bytearray, since torch warns of arrays that cannot be written to.
    return np.frombuffer(bytearray().join(parts), dtype=np.uint8), offsets
