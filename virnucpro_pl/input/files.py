"""The files of an input: which they are, what messages call them, and the records in each."""

from __future__ import annotations

import io
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from virnucpro_pl.errors import InputError, UsageError
from virnucpro_pl.input.alignments import (
    BGZF_END,
    CUT_OFF,
    Kind,
    kind_of,
    parse_alignments,
    parse_sam,
)
from virnucpro_pl.input.fastx import FormatError, Record, parse
from virnucpro_pl.input.faults import first_word, name_record
from virnucpro_pl.input.text import DAMAGED, open_text

log = logging.getLogger(__name__)

STDIN = Path("-")
"""Stands for standard input; a file of that name is given as `./-`."""
_STDIN_FILE = 0
"""File descriptor of standard input."""
_BGZIP = re.compile(rb"\x1f\x8b\x08\x04.{8}BC\x02\x00", re.DOTALL)
"""How a file that bgzip has compressed begins (SAM specification, section 4.1)."""
_HEAD = 8192
"""Bytes by which compression and format are told."""


def input_paths(given: str | Path | Sequence[str | Path]) -> list[Path]:
    """Give the paths of an option that takes one or several.

    Raises:
        UsageError: If there is none, or standard input is named more than once.
    """
    several = [given] if isinstance(given, str | Path) else list(given)
    if not several:
        raise UsageError("--data.path is an empty list: name the files to read")
    if "" in map(str, several):
        raise UsageError("--data.path is an empty name: name the files to read")
    if [str(path) for path in several].count(str(STDIN)) > 1:
        raise UsageError("--data.path names - twice, but standard input can be read only once")
    paths = [(path, Path(path)) for path in several]
    return [p.absolute() if p == STDIN and str(name) != str(STDIN) else p for name, p in paths]


def shown(path: Path) -> str:
    """What messages call a file."""
    return "standard input" if path == STDIN else str(path)


def printable(name: str) -> str:
    """Name of a file as a table can hold it: no tabs, no bytes that are no text."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def input_stem(path: Path) -> str:
    """Name of an input without compression and format: `contigs` of `contigs.fasta.gz`."""
    if path == STDIN:
        return "stdin"
    if path.suffix in (".gz", ".bz2", ".xz", ".zst"):
        path = path.with_suffix("")
    return path.stem


def files_on_disk(paths: Sequence[Path]) -> list[Path]:
    """Give the paths that must not be written; standard input may be a file, too."""
    return [Path("/dev/stdin") if path == STDIN else path for path in paths]


def refuse_repeated_files(paths: Sequence[Path]) -> None:
    """Refuse a file that is given twice, whatever its names, or that is not there.

    Raises:
        InputError: If one is, by its path, a symbolic or a hard link, or one is missing.
    """
    first: dict[tuple[int, int], Path] = {}
    for path in paths:
        try:
            status = os.fstat(_STDIN_FILE) if path == STDIN else path.stat()
        except OSError as error:  # now, and not when those before it have been read
            raise InputError(f"{shown(path)} cannot be read: {error.strerror}") from error
        place = status.st_dev, status.st_ino
        if place in first:
            names = dict.fromkeys([shown(first[place]), shown(path)])
            raise InputError(
                f"{' and '.join(names)}: the same file is given twice; name it once in --data.path"
            )
        first[place] = path


def records_of(path: Path, scratch: Path) -> Iterator[Record]:
    """Open a file and give its records: FASTA or FASTQ, compressed or not, or BAM, CRAM or SAM.

    Args:
        path: The file, or `STDIN`.
        scratch: Existing folder for what a format has to put aside.

    Raises:
        InputError: Whatever is wrong with the file or its format.
    """
    number, header = 0, ""
    try:
        with _open(path) as file, open_text(file) as text:
            kind, name = kind_of(file.peek(1)), shown(path)
            is_bgzip = _BGZIP.match(file.peek(1)) is not None
            if kind == "SAM":
                records = parse_sam(text, path, name=name)
            elif kind:
                records = parse_alignments(file, path, kind, scratch, name=name)
            else:
                records = parse(text)
            for record in records:
                number, header = number + 1, record[0]
                yield record
            if is_bgzip and kind in (None, "SAM"):
                _check_end(file, kind, name)
    except FormatError as error:
        behind = f" behind {name_record(number, first_word(header))}" if number else ""
        raise InputError(f"{shown(path)} cannot be read{behind}: {error}") from error
    except DAMAGED as error:
        past = f" past {name_record(number, first_word(header))}" if number else ""
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{shown(path)} cannot be read{past}: {reason}") from error


def _check_end(file: io.BufferedReader, kind: Kind | None, name: str) -> None:
    """Look whether a file that bgzip has compressed has its last block; it tells nothing else.

    Raises:
        EOFError: If a SAM file lacks it. Programs that write FASTQ may leave it out, so that there
            the log says so.
    """
    raw = file.raw
    assert isinstance(raw, _FilledFile)
    if raw.last == BGZF_END:
        return
    if kind == "SAM":
        raise EOFError(CUT_OFF)
    log.warning(
        "%s lacks the empty block that bgzip writes at the end: if the program that wrote it does "
        "not leave it out, the file is cut off, and records are missing",
        name,
    )


def _open(path: Path) -> io.BufferedReader:
    """Open a file, or standard input.

    Raises:
        InputError: If nothing can come from standard input.
    """
    if path != STDIN:
        return io.BufferedReader(_FilledFile(path))
    if sys.stdin is None:  # its number may be another file's by now
        raise InputError("standard input is closed: pipe the sequences into the command")
    if os.isatty(_STDIN_FILE):
        raise InputError(
            "standard input is a terminal: pipe the sequences into the command, as in "
            "zcat reads.fq.gz | virnucpro-pl predict - -o results"
        )
    return io.BufferedReader(_FilledFile(_STDIN_FILE, closefd=False))


class _FilledFile(io.FileIO):
    """A file that gives enough bytes at once to tell its format, even where a pipe gives one.

    Attributes:
        last: The last bytes that were read, as many as `BGZF_END` has.
    """

    last = b""

    def readinto(self, buffer: memoryview) -> int | None:  # type: ignore[override]
        size = super().readinto(buffer)
        while size and size < min(_HEAD, len(buffer)):
            more = super().readinto(buffer[size:])
            if not more:
                break
            size += more
        if size:
            kept = len(BGZF_END)
            self.last = (self.last + bytes(buffer[max(0, size - kept) : size]))[-kept:]
        return size
