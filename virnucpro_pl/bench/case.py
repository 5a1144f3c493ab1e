"""What is measured: a model, sequences, and where."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from virnucpro_pl.bench.vocabulary import write_tokenizer
from virnucpro_pl.input.alphabets import ALPHABETS
from virnucpro_pl.input.packed_batch import PackedBatch, pack
from virnucpro_pl.input.reader import read_records
from virnucpro_pl.models import dnabert_s
from virnucpro_pl.models.esm2 import SIZES
from virnucpro_pl.precision import should_use_fp16
from virnucpro_pl.predict.embedders import DNABERTSEmbedder, ESM2Embedder
from virnucpro_pl.predict.sequence_embedder import SequenceEmbedder

DNA = "dnabert_s"
SAMPLE = 4096
"""Sequences that are drawn, or taken from a file; longer runs repeat them."""
FEWEST = 32
"""Records of the shortest run."""


class Case(NamedTuple):
    """One model on one set of sequences."""

    model: str
    """`dnabert_s` or the name of an ESM-2."""
    sample: list[bytes]
    """Sequences, repeated as long as it takes."""
    seconds: float
    """Length of the run end to end; everything else takes a third of it at most."""
    budget: int
    """Tokens of a pack."""
    workers: int
    """DataLoader processes."""
    device: torch.device
    scratch: Path
    """Folder for input and output."""
    duplicates: float = 0.0
    """Share of the records of a run that repeat another one."""

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """Of the matrix products."""
        return torch.float16 if self.cuda and should_use_fp16() else torch.float32

    @property
    def products(self) -> tuple[int, list[tuple[int, int]]]:
        """Layers, and (inputs, outputs) of each matrix product of one."""
        if self.model == DNA:
            size = dnabert_s.SIZES["published"]
            d, inner = size.width, size.inner
            return size.layers, [(d, 3 * d), (d, d), (d, 2 * inner), (inner, d)]
        d = SIZES[self.model].width
        return SIZES[self.model].layers, [(d, 3 * d), (d, d), (d, 4 * d), (4 * d, d)]

    @property
    def tokenizer(self) -> Path:
        """The tokenizer of DNA; made where there is none yet."""
        path = self.scratch / "tokenizer.json"
        return path if path.exists() else write_tokenizer(path)

    def embedder(self, **options: Any) -> SequenceEmbedder:
        """This program's module, with random weights."""
        if self.model == DNA:
            return DNABERTSEmbedder(weights="random", tokenizer=str(self.tokenizer), **options)
        return ESM2Embedder(self.model, weights="random", **options)

    def full_pack(self, embedder: SequenceEmbedder) -> PackedBatch:
        """One full pack of the sample, on the device."""
        _, counts = embedder.tokenizer.encode(self.sample)
        turns = 1 + self.budget // int(counts.sum())
        rows = np.tile(np.arange(len(counts)), turns)
        whole = int(np.searchsorted(np.cumsum(counts[rows]), self.budget, side="right"))
        rows = rows[: max(1, whole)]
        ids = [str(row) for row in rows]
        sequences = [self.sample[row] for row in rows]
        return pack(np.arange(len(rows)), ids, sequences, embedder.tokenizer).to(self.device)

    def wait(self) -> None:
        """Wait for the device."""
        if self.cuda:
            torch.cuda.synchronize()


def draw(workload: str, embedder: SequenceEmbedder, scratch: Path) -> list[bytes]:
    """The sample of a workload: random sequences, always the same, or those of a file.

    Args:
        workload: `500-base`, `proteome`, or a FASTA or FASTQ file.
        embedder: Whose letters they are.
        scratch: Folder for the file's record store.

    Raises:
        InputError: If the file cannot be read, or a record is bad.
    """
    generator = np.random.default_rng(0)
    dna = embedder.biased
    letters = np.frombuffer(b"ACGT" if dna else b"LAGVSERTIDPKQNFYMHWC", np.uint8)
    if workload == "500-base":
        lengths = np.full(SAMPLE, 500 if dna else 166)
    elif workload == "proteome":
        lengths = np.exp(generator.normal(5.6, 0.7, SAMPLE)).astype(int).clip(30, 1022)
    else:
        folder = scratch / "records"
        folder.mkdir(exist_ok=True)
        store = read_records(Path(workload), ALPHABETS[embedder.tokenizer.molecule], folder)
        return list(store.sequences(np.arange(min(len(store), SAMPLE))))
    return [generator.choice(letters, length).tobytes() for length in lengths]


def draw_genes() -> list[bytes]:
    """Random chunks of 500 bases with an open first frame; the others have stops, as a rule."""
    generator = np.random.default_rng(0)
    codons = [a + b + c for a, b, c in product("ACGT", repeat=3)]
    sense = [codon for codon in codons if codon not in ("TAA", "TAG", "TGA")]
    return ["".join([*generator.choice(sense, 166), "AC"]).encode() for _ in range(SAMPLE // 8)]


def write_fasta(path: Path, sample: list[bytes], count: int, duplicates: float = 0.0) -> Path:
    """Write so many records, taken from a sample in turn; later turns begin otherwise.

    Args:
        path: The file.
        sample: Sequences.
        count: How many records.
        duplicates: Share of them that repeat one before them. The others are distinct, as far as
            the sample's are, and have 36 letters or more.
    """
    repeats = np.random.default_rng(0).random(count) < duplicates
    repeats[:1] = False
    number = np.cumsum(~repeats) - 1
    chosen = np.random.default_rng(1).random(count) * (number + 1)
    number[repeats] = chosen[repeats].astype(int)
    with path.open("w") as file:
        for i, n in enumerate(number.tolist()):
            turn, place = divmod(n, len(sample))
            file.write(f">{i}\n{_mark(sample[place].decode(), turn)}\n")
    return path


def _mark(sequence: str, turn: int) -> str:
    """Spell a number other than 0 with the first letters.

    Its digits are codons that in each of the six frames code for two residues, and never for a
    stop, so that the proteins differ, too.
    """
    mark = f"{turn:012b}".replace("0", "AAA").replace("1", "CAA")
    return mark + sequence[len(mark) :] if turn and len(mark) <= len(sequence) else sequence
