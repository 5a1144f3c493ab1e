"""Records cleaned and checked to the last letter, a block at a time, on their way to the store."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from virnucpro_pl.errors import InputError
from virnucpro_pl.input.alphabets import (
    BLANKS,
    CERTAIN_BASES,
    IS_LETTER,
    IS_NO_BASE,
    NOTED,
    REFUSED,
    UPPER,
    Alphabet,
)
from virnucpro_pl.input.fastx import Record
from virnucpro_pl.input.faults import Faults, first_word
from virnucpro_pl.input.files import shown
from virnucpro_pl.input.records import FileRecords, StoreWriter
from virnucpro_pl.input.repeated_ids import mate_number

log = logging.getLogger(__name__)

_BLOCK = 4 << 20
"""Bytes of records that are validated and written at a time."""
_RECORD = 100
"""Bytes that a waiting record takes beside its letters."""
_EMPTY = "its sequence is empty: remove such records with --data.min_length 1"
_NO_BASES = 0.1
"""Share of letters that are no base, above which DNA is taken for proteins."""
_DNA_LIKE = 0.5
"""Share of records that could be DNA, above which proteins are taken for DNA."""
_TELLING = 30
"""Letters from which on a record of nothing but A, C, G, T, U, N is hardly a protein."""


class Validator:
    """Takes the records of a file one by one; cleans, checks and stores them a block at a time."""

    def __init__(
        self,
        path: Path,
        alphabet: Alphabet,
        writer: StoreWriter,
        faults: Faults,
        allow_empty_records: bool,
        mates: array[int] | None,
    ) -> None:
        """Say how a file is to be read.

        Args:
            path: The file, for messages.
            alphabet: Letters that are accepted.
            writer: Takes the records, behind those of earlier files.
            faults: Takes what is wrong with them.
            allow_empty_records: Whether a record may have no letters.
            mates: Takes which mate of a pair each header says to be; None if nobody asks.
        """
        self._path = path
        self._name = shown(path)
        self._alphabet = alphabet
        self._writer = writer
        self._faults = faults
        self._mates = mates
        self._allow_empty = allow_empty_records
        self._records = 0
        self._ids: list[bytes] = []
        self._sequences: list[bytes] = []
        self._waiting = 0
        self._noted = self._stops = 0
        self._letters = self._no_bases = 0
        self._long = self._dna_like = 0
        self._holds_headers = False

    @property
    def file(self) -> FileRecords:
        """The file as it was given, and how many records it has."""
        return FileRecords(str(self._path), self._records)

    def read(self, records: Iterable[Record]) -> None:
        """Take the records of the file, once those of earlier files are read."""
        self._faults.begin_file(len(self._writer.lengths))
        for header, sequence in records:
            letters = sequence.encode("latin-1").translate(UPPER, BLANKS)
            if self._alphabet.drop_stop and letters.endswith(b"*"):
                letters = letters[:-1]
                self._stops += 1
            if self._mates is not None:
                self._mates.append(mate_number(header))
            self._ids.append(first_word(header))
            self._sequences.append(letters)
            self._waiting += len(self._ids[-1]) + len(letters) + _RECORD
            if self._waiting >= _BLOCK:
                self._flush()
        self._flush()

    def check(self, *, allow_empty: bool, molecule: bool) -> None:
        """Check the file as a whole.

        Args:
            allow_empty: Whether it may have no records.
            molecule: Whether to refuse proteins for DNA, and DNA for proteins.

        Raises:
            InputError: If it has none, or is of the other molecule.
        """
        if not (self._records or allow_empty):
            raise InputError(
                f"{self._name} is empty: --data.allow_empty true takes an input without records, "
                "and writes an output without rows"
            )
        if molecule:
            self._check_molecule()

    def _flush(self) -> None:
        """Validate the records that wait, and append them to the store."""
        ids, sequences = self._ids, self._sequences
        self._ids, self._sequences, self._waiting = [], [], 0
        block = b"".join(sequences)
        letters = np.frombuffer(block, np.uint8)
        status = self._alphabet.status[letters]
        self._holds_headers |= b">" in block
        self._check_sequences(ids, sequences, np.flatnonzero(status == REFUSED))
        names = self._check_ids(ids)
        if self._alphabet.molecule == "DNA":
            self._letters += int(np.count_nonzero(IS_LETTER[letters]))
            self._no_bases += int(np.count_nonzero(IS_NO_BASE[letters]))
        else:
            telling = [sequence for sequence in sequences if len(sequence) >= _TELLING]
            self._long += len(telling)
            self._dna_like += sum(not s.translate(None, CERTAIN_BASES) for s in telling)
        noted = int(np.count_nonzero(status == NOTED))
        if noted:
            self._noted += noted
            sequences = [s.translate(self._alphabet.translation) for s in sequences]
        self._writer.append(names, sequences)
        self._records += len(names)

    def _check_ids(self, ids: list[bytes]) -> list[bytes]:
        """Give the ids as they can be stored: empty in place of what is no text."""
        block = b"".join(ids)
        if all(ids) and block.isascii() and block.decode().isprintable():
            return ids
        first = len(self._writer.lengths)
        faults = list(map(_fault_of_id, ids))
        for row, (identifier, fault) in enumerate(zip(ids, faults, strict=True), start=first):
            if fault:
                self._faults.add(row, identifier, fault)
        return [b"" if fault else name for name, fault in zip(ids, faults, strict=True)]

    def _check_sequences(
        self, ids: list[bytes], sequences: list[bytes], refused: NDArray[np.int64]
    ) -> None:
        """Find records without letters, and the first of the refused places in each record."""
        row = len(self._writer.lengths)
        if not self._allow_empty:
            for i, letters in enumerate(sequences):
                if not letters:
                    self._faults.add(row + i, ids[i], _EMPTY)
        if not len(refused):
            return
        starts = np.cumsum([0, *map(len, sequences)])
        owner = np.searchsorted(starts, refused, side="right") - 1
        owners, first = np.unique(owner, return_index=True)
        for i, place in zip(owners.tolist(), refused[first].tolist(), strict=True):
            joined = sequences[i].find(b">")  # tells more than the `*` or the word before it
            at = place - int(starts[i]) if joined < 0 else joined
            self._faults.add(row + i, ids[i], self._fault_of_letter(sequences[i][at], at + 1))

    def _fault_of_letter(self, letter: int, position: int) -> str:
        shown = repr(chr(letter)) if 32 <= letter < 127 else f"the byte 0x{letter:02x}"
        what = f"{shown} at position {position} is no {self._alphabet.name}"
        if letter == ord(">"):
            what += (
                ": another record begins within the line, as where a file without a final line end "
                "was put before another; begin it on a line of its own"
            )
        return what

    def counts(self) -> dict[str, int]:
        """What a reader of the results should know of the input, by name."""
        counts = {self._alphabet.count_name: self._noted} if self._alphabet.count_name else {}
        if self._alphabet.molecule == "protein":
            counts |= {"final_stops_dropped": self._stops, "dna_like_records": self._dna_like}
        return counts

    def log_counts(self) -> None:
        """Say the same in the log."""
        if self._noted:
            log.warning("%s: %d %s", self._name, self._noted, self._alphabet.noted)
        if self._stops:
            log.warning("%s: dropped the final * of %d record(s)", self._name, self._stops)
        if self._dna_like:
            log.warning(
                "%s: %d of %d records of %d letters and more may be DNA, and not proteins: they "
                "hold nothing but A, C, G, T, U, N",
                *(self._name, self._dna_like, self._long, _TELLING),
            )

    def _check_molecule(self) -> None:
        """Refuse what are proteins rather than DNA, or the other way round.

        Where a record begins within another, words of its header are among the letters: that fault
        is reported instead.

        Raises:
            InputError: With the config to take instead.
        """
        if self._holds_headers:
            return
        if self._no_bases > _NO_BASES * self._letters:
            share = f"{100 * self._no_bases / self._letters:.0f} % of its letters are no bases"
            kind, other = "proteins", "--config esm2.yaml embeds proteins"
        elif self._dna_like > _DNA_LIKE * self._long:
            share = (
                f"{self._dna_like} of {self._long} records of {_TELLING} letters and more hold "
                "nothing but A, C, G, T, U, N"
            )
            kind = "DNA"
            other = "--config virnucpro.yaml calls contigs, --config dnabert_s.yaml embeds DNA"
        else:
            return
        raise InputError(
            f"{self._name} holds {kind}, it seems, not {self._alphabet.molecule}: {share}. "
            f"{other}; --data.check_molecule false takes the file as it is"
        )


def _fault_of_id(identifier: bytes) -> str:
    """What is wrong with an id; empty if nothing is."""
    if not identifier:
        return "it has no id"
    try:
        strange = [letter for letter in identifier.decode() if not letter.isprintable()]
    except UnicodeDecodeError as error:
        return f"its id is not UTF-8: it holds the byte 0x{identifier[error.start]:02x}"
    return f"its id holds U+{ord(strange[0]):04X}, which cannot be printed" if strange else ""
