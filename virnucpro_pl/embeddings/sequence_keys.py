"""The names under which biotrainer looks sequences up: hashes of their letters."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from virnucpro_pl.embeddings.embedding_file import EmbeddingFile
from virnucpro_pl.errors import InputError, UsageError
from virnucpro_pl.input.fastx import FormatError, parse
from virnucpro_pl.input.text import DAMAGED, open_text


def sequence_key(letters: bytes) -> str:
    """Name of a sequence: SHA-256 of its letters, `_` and how many they are.

    So `calculate_sequence_hash` of biotrainer 1.4 has it (biotrainer/utilities/hashing.py).
    """
    return hashlib.sha256(b"%b_%d" % (letters, len(letters))).hexdigest()


def sequence_keys(embeddings: EmbeddingFile, sequences: Path) -> Iterator[str]:
    """Yield the key of each row's sequence, in order, from the file that was embedded.

    Args:
        embeddings: The embedding file, which holds no letters.
        sequences: FASTA or FASTQ file whose record i is row i. Letters count as they stand there:
            biotrainer changes none of them, either.

    Raises:
        InputError: If the file cannot be read.
        UsageError: If its records are not those of the rows, by id, length or number.
    """
    lengths = embeddings.lengths
    cut = embeddings.max_length
    records = zip_longest(embeddings, _records(sequences))
    for row, (name, record) in enumerate(records):
        if name is None or record is None:
            less = "more" if name is None else "fewer"
            raise UsageError(
                f"{sequences} has {less} records than {embeddings.path} has rows "
                f"({len(embeddings)}): --sequences is the file that was embedded, all of it"
            )
        found, letters = record
        if found != name:
            raise UsageError(
                f"{sequences}: record {row + 1} is {found}, but row {row + 1} of {embeddings.path} "
                f"is {name}. --sequences is the file that was embedded, in its order and with the "
                "ids of the rows: if ids were changed on the way, change them there as well"
            )
        length = _embedded_length(letters)
        length = length if cut is None else min(length, cut)
        if lengths is not None and length != lengths[row]:
            raise UsageError(
                f"{sequences}: record {row + 1} ({name}) has {length} letters, but "
                f"{lengths[row]} were embedded: this is not the file that was"
            )
        yield sequence_key(letters)


def _records(path: Path) -> Iterator[tuple[str, bytes]]:
    """Id and letters of each record."""
    try:
        with path.open("rb") as file, open_text(file) as text:
            for header, letters in parse(text):
                words = header.encode("latin-1").split(None, 1)
                yield (words[0] if words else b"").decode(), letters.encode("latin-1")
    except (FormatError, UnicodeDecodeError, *DAMAGED) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _embedded_length(letters: bytes) -> int:
    """Letters that a network has seen: without blanks, and without one `*` at the end."""
    return len(letters.translate(None, b" \t").removesuffix(b"*"))
