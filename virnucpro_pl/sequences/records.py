"""Sequence files, read and validated once, into a store that every rank and worker maps.

6 million records cost a rank nothing but address space: residues, offsets and ids lie in files.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import dnaio
import numpy as np
from dnaio.readers import FastaReader, FastqReader
from numpy.typing import NDArray
from xopen import xopen

from virnucpro_pl.errors import MAX_LISTED, InputError
from virnucpro_pl.sequences.alphabets import BLANKS, NOTED, REFUSED, Alphabet

__all__ = ["RecordStore", "read_records"]

log = logging.getLogger(__name__)

_BLOCK = 4 << 20
"""Bytes of sequence that are validated and written at a time."""
_BUFFER = 1 << 16


class RecordStore:
    """Records of one input, mapped from disk; pickled by its path alone.

    Attributes:
        residues: (total letters,) uint8, all sequences one behind the other.
        offsets: (N+1,) int64 start of each sequence in `residues`.
        sha256: Hash of ids and sequences, whatever the file's compression and line width.
    """

    def __init__(self, folder: Path) -> None:
        """Map a store.

        Args:
            folder: Where `write` put it.
        """
        self.folder = folder
        self.residues = _mapped(folder / "residues.bin", np.uint8)
        self.offsets = _mapped(folder / "offsets.bin", np.int64)
        self._id_bytes = _mapped(folder / "ids.bin", np.uint8)
        self._id_offsets = _mapped(folder / "id_offsets.bin", np.int64)
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
        """Ids of some rows."""
        starts, stops = self._id_offsets[rows], self._id_offsets[rows + 1]
        data = self._id_bytes
        return [data[a:b].tobytes().decode() for a, b in zip(starts, stops, strict=True)]

    def sequences(self, rows: NDArray[np.int64]) -> list[bytes]:
        """Sequences of some rows."""
        starts, stops = self.offsets[rows], self.offsets[rows + 1]
        return [self.residues[a:b].tobytes() for a, b in zip(starts, stops, strict=True)]


def _mapped(path: Path, dtype: type[np.generic]) -> NDArray[np.generic]:
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r")


class StoreWriter:
    """Appends records to a store; nothing is kept in RAM but one number per record."""

    def __init__(self, folder: Path) -> None:
        """Open the store's files.

        Args:
            folder: An existing folder; a store that lies there is replaced.
        """
        self.folder = folder
        self.lengths = array("q")
        self.id_lengths = array("q")
        self.hash = hashlib.sha256()
        self._residues = (folder / "residues.bin").open("wb")
        self._ids = (folder / "ids.bin").open("wb")

    def append(self, ids: list[bytes], sequences: list[bytes]) -> None:
        """Add records, in order."""
        self.lengths.extend(map(len, sequences))
        self.id_lengths.extend(map(len, ids))
        self._residues.write(b"".join(sequences))
        self._ids.write(b"".join(ids))
        for pair in zip(ids, sequences, strict=True):
            self.hash.update(b"\0%b\n%b" % pair)

    def close(self) -> RecordStore:
        """Write offsets and hash, and map the result."""
        self._residues.close()
        self._ids.close()
        for name, lengths in (("offsets", self.lengths), ("id_offsets", self.id_lengths)):
            offsets = np.concatenate(([0], np.cumsum(np.asarray(lengths, np.int64))))
            offsets.astype(np.int64).tofile(self.folder / f"{name}.bin")
        (self.folder / "store.json").write_text(json.dumps({"sha256": self.hash.hexdigest()}))
        return RecordStore(self.folder)


class _Tally(NamedTuple):
    """What was met while reading, beyond good records."""

    faults: list[str]
    """The first messages."""
    counts: dict[str, int]
    """`faults`, `noted` letters, dropped `stops`."""

    def fault(self, message: str) -> None:
        self.counts["faults"] += 1
        if len(self.faults) < MAX_LISTED:
            self.faults.append(message)


def read_records(path: Path, alphabet: Alphabet, folder: Path) -> RecordStore:
    """Read and validate a FASTA or FASTQ file, plain or gz, bz2, xz, zst compressed.

    Ids are the first word of the header. Letters are made upper case; blanks within sequence lines
    are removed. All bad records of a file are reported together.

    Args:
        path: The file.
        alphabet: Letters that are accepted.
        folder: Existing folder for the store.

    Returns:
        The store.

    Raises:
        InputError: If the file is missing, damaged, empty, no FASTA or FASTQ, or any record has no
            id, no sequence, a letter that is refused, or the id of another record.
    """
    writer = StoreWriter(folder)
    tally = _Tally([], {"faults": 0, "noted": 0, "stops": 0})
    ids: list[bytes] = []
    sequences: list[bytes] = []
    waiting = 0
    hashes = array("q")
    number = 0
    for number, (name, sequence) in enumerate(_parse(path), start=1):
        letters = sequence.encode().translate(alphabet.translation, BLANKS)
        if alphabet.drop_stop and letters.endswith(b"*"):
            letters = letters[:-1]
            tally.counts["stops"] += 1
        identifier = name.replace("\t", " ").partition(" ")[0]
        if not identifier or "\0" in identifier:
            tally.fault(f"record {number}: {'NUL in its id' if identifier else 'it has no id'}")
        elif not letters:
            tally.fault(f"record {number} ({identifier}): its sequence is empty")
        encoded = identifier.encode()
        hashes.append(hash(encoded))
        ids.append(encoded)
        sequences.append(letters)
        waiting += len(letters)
        if waiting >= _BLOCK:
            _flush(writer, ids, sequences, number, alphabet, tally)
            waiting = 0
    if number == 0:
        raise InputError(f"{path} holds no sequence")
    _flush(writer, ids, sequences, number, alphabet, tally)
    store = writer.close()
    for message in _duplicates(store, np.asarray(hashes, np.int64)):
        tally.fault(message)
    _report(path, alphabet, tally)
    return store


def _flush(
    writer: StoreWriter,
    ids: list[bytes],
    sequences: list[bytes],
    last: int,
    alphabet: Alphabet,
    tally: _Tally,
) -> None:
    """Validate the waiting records' letters and append them to the store."""
    status = alphabet.status[np.frombuffer(b"".join(sequences), np.uint8)]
    tally.counts["noted"] += int(np.count_nonzero(status == NOTED))
    bad = np.flatnonzero(status == REFUSED)
    if len(bad):
        starts = np.cumsum([0, *map(len, sequences)])
        records, first = np.unique(np.searchsorted(starts, bad, side="right") - 1, return_index=True)
        for i, place in zip(records, bad[first], strict=True):
            at = int(place - starts[i])
            letter = chr(sequences[i][at])
            tally.fault(
                f"record {last - len(ids) + i + 1} ({ids[i].decode()}): "
                f"{letter!r} at position {at + 1} is no {alphabet.name}"
            )
    writer.append(ids, sequences)
    ids.clear()
    sequences.clear()


def _duplicates(store: RecordStore, hashes: NDArray[np.int64]) -> Iterator[str]:
    """Name ids that occur more than once; equal hashes are only candidates."""
    order = np.argsort(hashes, kind="stable")
    equal = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    candidates = np.unique(np.concatenate((order[equal], order[equal + 1])))
    first: dict[str, int] = {}
    for row, identifier in zip(candidates, store.ids(candidates), strict=True):
        if identifier in first:
            yield (
                f"record {row + 1} ({identifier}): the id is that of record "
                f"{first[identifier] + 1} already"
            )
        elif identifier:
            first[identifier] = int(row)


def _report(path: Path, alphabet: Alphabet, tally: _Tally) -> None:
    count = tally.counts["faults"]
    if count:
        more = count - len(tally.faults)
        lines = [f"{path}: {count} bad record{'s' * (count > 1)}:", *tally.faults]
        raise InputError("\n  ".join(lines + ([f"and {more} more"] if more else [])))
    if tally.counts["noted"]:
        log.warning(
            "%s: %d unusual %ss %s", path, tally.counts["noted"], alphabet.name, alphabet.noted
        )
    if tally.counts["stops"]:
        log.warning("%s: dropped the final * of %d records", path, tally.counts["stops"])


def _parse(path: Path) -> Iterator[tuple[str, str]]:
    """Yield header and sequence of each record; every fault of file or format is an InputError."""
    number = 0
    try:
        with xopen(path, "rb", threads=0) as handle, _reader(path, handle) as reader:
            for number, record in enumerate(reader, start=1):  # noqa: B007
                yield record.name, record.sequence
    except dnaio.FileFormatError as error:
        raise InputError(f"{path}: after record {number}: {error}") from error
    except (EOFError, OSError, UnicodeDecodeError) as error:
        what = "cannot be opened" if number == 0 else f"cannot be read past record {number}"
        raise InputError(f"{path} {what}: {error}") from error


def _reader(path: Path, handle: BinaryIO) -> FastaReader | FastqReader:
    buffered = io.BufferedReader(_WithoutComments(path, handle), buffer_size=_BUFFER)
    start = buffered.peek().lstrip()
    if start.startswith(b"@"):
        return FastqReader(buffered)
    if start.startswith(b">"):
        return FastaReader(buffered)
    if not start:
        raise InputError(f"{path} is empty")
    raise InputError(
        f"{path} is neither FASTA nor FASTQ: it starts with {start[:10]!r} instead of '>' or '@'"
    )


class _WithoutComments(io.RawIOBase):
    """A stream that refuses FASTA lines beginning with `#`, which dnaio would pass over silently."""

    def __init__(self, path: Path, handle: BinaryIO) -> None:
        self._path = path
        self._handle = handle
        self._fasta: bool | None = None
        self._last = b"\n"
        self._lines = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # any writable buffer
        count = self._handle.readinto(buffer)  # type: ignore[attr-defined]
        data = self._last + bytes(memoryview(buffer)[:count])
        if self._fasta is None and data.strip():
            self._fasta = data.lstrip().startswith(b">")
        if self._fasta:
            at = max(data.find(b"\n#"), data.find(b"\r#"))
            if at >= 0:
                line = self._lines + data[1 : at + 1].count(b"\n") + 1
                raise InputError(f"{self._path}: line {line} begins with '#', which is no FASTA")
        self._lines += data[1:].count(b"\n")
        self._last = data[-1:]
        return int(count)
