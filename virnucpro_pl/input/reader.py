"""Sequence files, read once and validated to the last letter, into a store of records."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from virnucpro_pl.errors import MAX_LISTED, InputError, UsageError
from virnucpro_pl.input.alignments import kind_of, parse_alignments
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
from virnucpro_pl.input.fastx import FormatError, Record, parse
from virnucpro_pl.input.records import RecordStore, StoreWriter
from virnucpro_pl.input.text import DAMAGED, open_text

log = logging.getLogger(__name__)

_BLOCK = 4 << 20
"""Bytes of records that are validated and written at a time."""
_RECORD = 100
"""Bytes that a waiting record takes beside its letters."""
_SHOWN = 60
"""Characters of an id that a message shows."""
_EMPTY = "its sequence is empty: remove such records, for example with seqkit seq --min-len 1"
_NO_BASES = 0.1
"""Share of letters that are no base, above which DNA is taken for proteins."""
_DNA_LIKE = 0.5
"""Share of records that could be DNA, above which proteins are taken for DNA."""
_TELLING = 30
"""Letters from which on a record of nothing but A, C, G, T, U, N is hardly a protein."""


def read_records(
    path: Path,
    alphabet: Alphabet,
    folder: Path,
    *,
    allow_empty_records: bool = False,
    check_molecule: bool = True,
) -> RecordStore:
    """Read and validate FASTA or FASTQ, plain or compressed, or unmapped BAM, CRAM or SAM.

    Ids are the first word of the header, in UTF-8; what stands behind it is not looked at. Letters
    are made upper case; blanks within sequence lines are removed. All bad records are reported
    together.

    Args:
        path: The file.
        alphabet: Letters that are accepted.
        folder: Existing folder for the store.
        allow_empty_records: Whether a record may have no letters.
        check_molecule: Whether to refuse proteins for DNA, and DNA for proteins.

    Returns:
        The store.

    Raises:
        InputError: If the file is missing, damaged, empty, of no known format, of the other
            molecule, or any record has no id, no sequence, a letter that is refused, or the id of
            another record.
        UsageError: If the store cannot be written.
    """
    try:
        with StoreWriter(folder) as writer:
            validator = _Validator(alphabet, writer, allow_empty_records=allow_empty_records)
            for record in _parse(path, folder):
                validator.add(record)
            validator.flush()
            store = writer.close(validator.counts())
    except OSError as error:  # of the store: the input's have become InputErrors
        raise UsageError(f"The records of {path} cannot be stored in {folder}: {error}") from error
    if not len(store):
        raise InputError(f"{path} is empty")
    if check_molecule:
        validator.check_molecule(path)
    _find_duplicates(store, np.asarray(writer.hashes, np.int64), validator.faults)
    validator.faults.report(path)
    validator.log_counts(path)
    return store


def _parse(path: Path, scratch: Path) -> Iterator[Record]:
    """Yield the records; every fault of file or format is an InputError."""
    number, header = 0, ""
    try:
        with path.open("rb") as file, open_text(file) as text:
            kind = kind_of(file.peek(1))
            records = (
                parse_alignments(file, path, kind, scratch, name=str(path)) if kind else parse(text)
            )
            for record in records:
                number, header = number + 1, record[0]
                yield record
    except FormatError as error:
        behind = f" behind {_name(number, _first_word(header))}" if number else ""
        raise InputError(f"{path} cannot be read{behind}: {error}") from error
    except DAMAGED as error:
        past = f" past {_name(number, _first_word(header))}" if number else ""
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read{past}: {reason}") from error


class _Faults:
    """What is wrong with records, in the order of the records; only the first ones are kept."""

    def __init__(self) -> None:
        self.count = 0
        self._first: list[tuple[int, str]] = []

    def add(self, number: int, identifier: bytes, what: str) -> None:
        """Add what is wrong with a record, in any order."""
        self.count += 1
        self._first.append((number, f"{_name(number, identifier)}: {what}"))
        if len(self._first) > 50 * MAX_LISTED:
            self._cut()

    def report(self, path: Path) -> None:
        """Raise if there are any.

        Raises:
            InputError: With the first faults and their number.
        """
        if not self.count:
            return
        self._cut()
        lines = [f"{path} has {self.count} fault{'s' * (self.count > 1)}:"]
        lines += [message for _, message in self._first]
        more = self.count - len(self._first)
        raise InputError("\n  ".join(lines + ([f"and {more} more"] if more else [])))

    def _cut(self) -> None:
        self._first.sort()
        del self._first[MAX_LISTED:]


class _Validator:
    """Takes records one by one, and cleans, checks and stores them a block at a time.

    Attributes:
        faults: What is wrong with them.
    """

    def __init__(
        self, alphabet: Alphabet, writer: StoreWriter, *, allow_empty_records: bool
    ) -> None:
        self.faults = _Faults()
        self._alphabet = alphabet
        self._writer = writer
        self._allow_empty = allow_empty_records
        self._ids: list[bytes] = []
        self._sequences: list[bytes] = []
        self._waiting = 0
        self._noted = self._stops = 0
        self._letters = self._no_bases = 0
        self._long = self._dna_like = 0
        self._holds_headers = False

    def add(self, record: Record) -> None:
        """Take one record."""
        header, sequence = record
        letters = sequence.encode("latin-1").translate(UPPER, BLANKS)
        if self._alphabet.drop_stop and letters.endswith(b"*"):
            letters = letters[:-1]
            self._stops += 1
        self._ids.append(_first_word(header))
        self._sequences.append(letters)
        self._waiting += len(self._ids[-1]) + len(letters) + _RECORD
        if self._waiting >= _BLOCK:
            self.flush()

    def flush(self) -> None:
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

    def _check_ids(self, ids: list[bytes]) -> list[bytes]:
        """Give the ids as they can be stored: empty in place of what is no text."""
        block = b"".join(ids)
        if all(ids) and block.isascii() and block.decode().isprintable():
            return ids
        first = len(self._writer.lengths) + 1
        faults = list(map(_fault_of_id, ids))
        for number, (identifier, fault) in enumerate(zip(ids, faults, strict=True), start=first):
            if fault:
                self.faults.add(number, identifier, fault)
        return [b"" if fault else name for name, fault in zip(ids, faults, strict=True)]

    def _check_sequences(
        self, ids: list[bytes], sequences: list[bytes], refused: NDArray[np.int64]
    ) -> None:
        """Find records without letters, and the first of the refused places in each record."""
        number = len(self._writer.lengths) + 1
        if not self._allow_empty:
            for i, letters in enumerate(sequences):
                if not letters:
                    self.faults.add(number + i, ids[i], _EMPTY)
        if not len(refused):
            return
        starts = np.cumsum([0, *map(len, sequences)])
        owner = np.searchsorted(starts, refused, side="right") - 1
        owners, first = np.unique(owner, return_index=True)
        for i, place in zip(owners.tolist(), refused[first].tolist(), strict=True):
            joined = sequences[i].find(b">")  # tells more than the `*` or the word before it
            at = place - int(starts[i]) if joined < 0 else joined
            self.faults.add(number + i, ids[i], self._fault_of_letter(sequences[i][at], at + 1))

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

    def log_counts(self, path: Path) -> None:
        """Say the same in the log."""
        if self._noted:
            log.warning("%s: %d %s", path, self._noted, self._alphabet.noted)
        if self._stops:
            log.warning("%s: dropped the final * of %d record(s)", path, self._stops)
        if self._dna_like:
            log.warning(
                "%s: %d of %d records of %d letters and more may be DNA, and not proteins: they "
                "hold nothing but A, C, G, T, U, N",
                *(path, self._dna_like, self._long, _TELLING),
            )

    def check_molecule(self, path: Path) -> None:
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
            f"{path} holds {kind}, it seems, not {self._alphabet.molecule}: {share}. {other}; "
            "--data.check_molecule false takes the file as it is"
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


def _find_duplicates(store: RecordStore, hashes: NDArray[np.int64], faults: _Faults) -> None:
    """Find ids that occur more than once; equal hashes only make candidates."""
    order = np.argsort(hashes, kind="stable")
    equal = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
    candidates = np.unique(np.concatenate((order[equal], order[equal + 1])))
    first: dict[str, int] = {}
    for row, identifier in zip(candidates.tolist(), store.ids(candidates), strict=True):
        if identifier in first:
            what = f"the id is that of record {first[identifier] + 1} already"
            faults.add(row + 1, identifier.encode(), what)
        elif identifier:
            first[identifier] = row


def _first_word(header: str) -> bytes:
    """The id; blanks before it mean nothing."""
    words = header.encode("latin-1").split(None, 1)
    return words[0] if words else b""


def _name(number: int, identifier: bytes) -> str:
    """A record in a message."""
    text = identifier.decode(errors="replace")
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    return f"record {number} ({shown})" if identifier else f"record {number}"
