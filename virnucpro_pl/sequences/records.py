"""Sequence files, read and validated once, into a store that every rank and worker maps.

6 million records cost a rank nothing but address space: residues, offsets and ids lie in files.
"""

from __future__ import annotations

import hashlib
import json
import logging
from array import array
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Any

import dnaio
import numpy as np
from dnaio.readers import FastaReader, FastqReader
from numpy.typing import NDArray

from virnucpro_pl.errors import MAX_LISTED, InputError, UsageError
from virnucpro_pl.sequences.alphabets import BLANKS, NOTED, REFUSED, UPPER, Alphabet
from virnucpro_pl.sequences.text import DAMAGED, SequenceText

__all__ = ["RecordStore", "map_array", "read_records"]

log = logging.getLogger(__name__)

_BLOCK = 4 << 20
"""Bytes of records that are validated and written at a time."""
_RECORD = 100
"""Bytes that a waiting record takes beside its letters."""
_BUFFER = 1 << 16
_END_OF_ID = b"\0"
"""In no id: `sequences.text` refuses a header that holds one."""
_SHOWN = 60
"""Characters of an id that a message shows."""


class RecordStore:
    """Records of one input, mapped from disk; pickled by its path alone.

    Attributes:
        residues: (total letters,) uint8, all sequences one behind the other.
        offsets: (N+1,) int64 start of each sequence in `residues`.
        sha256: Hash of ids and sequences, whatever the file's compression and line width.
        unit: What a row is, for messages.
    """

    unit = "records"

    def __init__(self, folder: Path) -> None:
        """Map a store.

        Args:
            folder: Where `write` put it.
        """
        self.folder = folder
        self.residues = map_array(folder / "residues.bin", np.uint8)
        self.offsets = map_array(folder / "offsets.bin", np.int64)
        self._id_bytes = map_array(folder / "ids.bin", np.uint8)
        self._id_offsets = map_array(folder / "id_offsets.bin", np.int64)
        self.sha256 = str(json.loads((folder / "store.json").read_text())["sha256"])

    def __reduce__(self) -> tuple[type[RecordStore], tuple[Path]]:
        """Send the path to a worker, not the bytes."""
        return RecordStore, (self.folder,)

    def __len__(self) -> int:
        """Count the records."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(N,) letters of each record."""
        return np.diff(self.offsets)

    def ids(self, rows: NDArray[np.int64]) -> list[str]:
        """Ids of some rows; quickest where rows follow each other."""
        firsts = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
        lasts = np.flatnonzero(np.diff(rows, append=-2) != 1)
        starts = self._id_offsets[rows[firsts]].tolist()
        stops = (self._id_offsets[rows[lasts] + 1] - len(_END_OF_ID)).tolist()
        found: list[str] = []
        for start, stop in zip(starts, stops, strict=True):
            found += self._id_bytes[start:stop].tobytes().decode().split(_END_OF_ID.decode())
        return found

    def sequences(self, rows: NDArray[np.int64]) -> list[bytes]:
        """Sequences of some rows."""
        starts, stops = self.offsets[rows], self.offsets[rows + 1]
        return [self.residues[a:b].tobytes() for a, b in zip(starts, stops, strict=True)]


def map_array(path: Path, dtype: type[np.generic]) -> NDArray[Any]:
    """Map a file of numbers; read-only, and empty where the file is."""
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r").view(np.ndarray)  # slices of a memmap are slow


class StoreWriter:
    """Appends records to a store; nothing is kept in RAM but three numbers per record.

    Attributes:
        hashes: One number per id; equal ids have equal ones.
    """

    def __init__(self, folder: Path) -> None:
        """Open the store's files.

        Args:
            folder: An existing folder; a store that lies there is replaced.
        """
        self.folder = folder
        self.lengths = array("q")
        self.id_lengths = array("q")
        self.hashes = array("q")
        self._sha256 = hashlib.sha256()
        self._residues = (folder / "residues.bin").open("wb")
        self._ids = (folder / "ids.bin").open("wb")

    def __enter__(self) -> StoreWriter:
        """Give the writer."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the files."""
        self._residues.close()
        self._ids.close()

    def append(self, ids: list[bytes], sequences: list[bytes]) -> None:
        """Add records, in order."""
        self.lengths.extend(map(len, sequences))
        self.id_lengths.extend(len(each) + len(_END_OF_ID) for each in ids)
        self.hashes.extend(map(hash, ids))
        self._residues.write(b"".join(sequences))
        self._ids.writelines(each + _END_OF_ID for each in ids)
        for pair in zip(ids, sequences, strict=True):
            self._sha256.update(b"\0%b\n%b" % pair)

    def close(self) -> RecordStore:
        """Write offsets and hash, and map the result."""
        self._residues.close()
        self._ids.close()
        for name, lengths in (("offsets", self.lengths), ("id_offsets", self.id_lengths)):
            offsets = np.zeros(len(lengths) + 1, np.int64)
            np.cumsum(np.asarray(lengths, np.int64), out=offsets[1:])
            offsets.tofile(self.folder / f"{name}.bin")
        (self.folder / "store.json").write_text(json.dumps({"sha256": self._sha256.hexdigest()}))
        return RecordStore(self.folder)


class _Findings:
    """What was met while reading, beyond good records.

    Attributes:
        faults: How many there are.
        noted: Letters that are kept and counted.
        stops: Records whose final `*` was dropped.
    """

    def __init__(self) -> None:
        self.faults = self.noted = self.stops = 0
        self._first: list[tuple[int, str]] = []

    def fault(self, number: int, identifier: bytes, what: str) -> None:
        """Add what is wrong with a record, in any order; only the first ones are kept."""
        self.faults += 1
        self._first.append((number, f"{_name(number, identifier)}: {what}"))
        if len(self._first) > 50 * MAX_LISTED:
            self._cut()

    def report(self, path: Path, alphabet: Alphabet) -> None:
        """Raise if there are faults, and log the rest.

        Raises:
            InputError: With the first faults and their number.
        """
        if self.faults:
            self._cut()
            lines = [f"{path} has {self.faults} fault{'s' * (self.faults > 1)}:"]
            lines += [message for _, message in self._first]
            more = self.faults - len(self._first)
            raise InputError("\n  ".join(lines + ([f"and {more} more"] if more else [])))
        if self.noted:
            log.warning("%s: %d unusual %s(s) %s", path, self.noted, alphabet.name, alphabet.noted)
        if self.stops:
            log.warning("%s: dropped the final * of %d record(s)", path, self.stops)

    def _cut(self) -> None:
        self._first.sort()
        del self._first[MAX_LISTED:]


def _name(number: int, identifier: bytes) -> str:
    return (
        f"record {number} ({_shortened(identifier.decode())})" if identifier else f"record {number}"
    )


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def read_records(path: Path, alphabet: Alphabet, folder: Path) -> RecordStore:
    """Read and validate a FASTA or FASTQ file, plain or gz, bz2, xz, zst compressed.

    Ids are the first word of the header. Letters are made upper case; blanks within sequence lines
    are removed, as are those before a FASTA header. All bad records are reported together.

    Args:
        path: The file.
        alphabet: Letters that are accepted.
        folder: Existing folder for the store.

    Returns:
        The store.

    Raises:
        InputError: If the file is missing, damaged, empty, no FASTA or FASTQ, or any record has no
            id, no sequence, a letter that is refused, or the id of another record.
        UsageError: If the store cannot be written.
    """
    findings = _Findings()
    try:
        with StoreWriter(folder) as writer:
            _copy(_parse(path), alphabet, writer, findings)
            store = writer.close()
    except OSError as error:  # of the store: the input's have become InputErrors
        raise UsageError(f"The records of {path} cannot be stored in {folder}: {error}") from error
    if not len(store):
        raise InputError(f"{path} is empty")
    _find_duplicates(store, np.asarray(writer.hashes, np.int64), findings)
    findings.report(path, alphabet)
    return store


def _copy(
    records: Iterator[tuple[str, str]], alphabet: Alphabet, writer: StoreWriter, findings: _Findings
) -> None:
    """Clean and validate records, and append them to the store."""
    ids: list[bytes] = []
    sequences: list[bytes] = []
    waiting = 0
    for header, sequence in records:
        letters = sequence.encode().translate(UPPER, BLANKS)
        if alphabet.drop_stop and letters.endswith(b"*"):
            letters = letters[:-1]
            findings.stops += 1
        ids.append(_first_word(header).encode())
        sequences.append(letters)
        waiting += len(ids[-1]) + len(letters) + _RECORD
        if waiting >= _BLOCK:
            _flush(ids, sequences, alphabet, writer, findings)
            ids, sequences, waiting = [], [], 0
    _flush(ids, sequences, alphabet, writer, findings)


def _first_word(header: str) -> str:
    return header.replace("\t", " ").partition(" ")[0]


def _flush(
    ids: list[bytes],
    sequences: list[bytes],
    alphabet: Alphabet,
    writer: StoreWriter,
    findings: _Findings,
) -> None:
    """Validate a block of records and append it to the store."""
    number = len(writer.lengths) + 1
    for i, (identifier, sequence) in enumerate(zip(ids, sequences, strict=True)):
        if not identifier:
            findings.fault(number + i, identifier, "it has no id")
        if not sequence:
            findings.fault(number + i, identifier, "its sequence is empty")
    status = alphabet.status[np.frombuffer(b"".join(sequences), np.uint8)]
    noted = int(np.count_nonzero(status == NOTED))
    findings.noted += noted
    bad = np.flatnonzero(status == REFUSED)
    if len(bad):
        starts = np.cumsum([0, *map(len, sequences)])
        owners, first = np.unique(np.searchsorted(starts, bad, side="right") - 1, return_index=True)
        for i, place in zip(owners.tolist(), bad[first].tolist(), strict=True):
            at = place - int(starts[i])
            letter = chr(sequences[i][at])
            what = f"{letter!r} at position {at + 1} is no {alphabet.name}"
            findings.fault(number + i, ids[i], what)
    if noted:
        sequences = [sequence.translate(alphabet.translation) for sequence in sequences]
    writer.append(ids, sequences)


def _find_duplicates(store: RecordStore, hashes: NDArray[np.int64], findings: _Findings) -> None:
    """Find ids that occur more than once; equal hashes only make candidates."""
    order = np.argsort(hashes, kind="stable")
    equal = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
    candidates = np.unique(np.concatenate((order[equal], order[equal + 1])))
    first: dict[str, int] = {}
    for row, identifier in zip(candidates.tolist(), store.ids(candidates), strict=True):
        if identifier in first:
            what = f"the id is that of record {first[identifier] + 1} already"
            findings.fault(row + 1, identifier.encode(), what)
        elif identifier:
            first[identifier] = row


def _parse(path: Path) -> Iterator[tuple[str, str]]:
    """Yield header and sequence of each record; every fault of file or format is an InputError."""
    number, header = 0, ""
    try:
        with path.open("rb") as file:
            for number, record in enumerate(_reader(SequenceText(path, file)), start=1):  # noqa: B007
                header = record.name
                yield header, record.sequence
    except dnaio.FileFormatError as error:
        line = "" if error.line is None else f", line {error.line + 1}"
        what = error.message.splitlines()[0][:200]
        raise InputError(f"{path}: record {number + 1}{line}: {what}") from error
    except DAMAGED as error:
        past = f" past {_name(number, _first_word(header).encode())}" if number else ""
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read{past}: {reason}") from error


def _reader(text: SequenceText) -> FastaReader | FastqReader:
    buffered = BufferedReader(text, _BUFFER)
    while not text.first and (blank := buffered.peek()).isspace():
        buffered.read(len(blank))  # no more: what comes next may be the first record
    return FastqReader(buffered) if text.first == b"@" else FastaReader(buffered)
