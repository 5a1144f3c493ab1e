"""FASTA and FASTQ, line by line; whatever is neither is refused with its place.

No library serves: dnaio drops FASTA lines that begin with `#` and refuses headers that are not
ASCII, Biopython takes text before the first record for a comment. Which letters a sequence may hold
is for `input.reader` to check.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NoReturn

_BLANKS = " \t\n"
_BOM = "\xef\xbb\xbf"
"""UTF-8's byte order mark, each byte a character."""

Record = tuple[str, str]
"""Header without its `>` or `@`, and the sequence as it stands; each character is one byte."""


class FormatError(Exception):
    """A line that makes a file no FASTA or FASTQ; the message tells the line."""


def parse(lines: Iterable[str]) -> Iterator[Record]:
    """Give the records of a FASTA or FASTQ file; its first character tells which it is.

    Blank lines, and blanks at both ends of FASTA lines, mean nothing. A byte order mark is skipped
    at the beginning, and where FASTA files that have one were joined.

    Args:
        lines: Each ends in a line feed, but for the last; each character one byte.

    Raises:
        FormatError: If it is neither, or breaks off within a record.
    """
    lines = iter(lines)
    for number, line in enumerate(lines, start=1):
        text = line.removeprefix(_BOM).lstrip(_BLANKS)
        if text.startswith(">"):
            yield from _parse_fasta(chain([text], lines), number)
        elif text.startswith("@"):
            yield from _parse_fastq(chain([text], lines), number)
        elif text:
            start = line[:10].encode("latin-1")
            raise FormatError(
                "it is neither FASTA nor FASTQ, plain or gz, bz2, xz, zst compressed: line "
                f"{number} starts with {start!r} instead of '>' or '@'"
            )


def _parse_fasta(lines: Iterator[str], first: int) -> Iterator[Record]:
    """Records of FASTA, whose first header stands in line `first` of the file."""
    header = next(lines).strip(_BLANKS)
    parts: list[str] = []
    for number, line in enumerate(lines, start=first + 1):
        text = line.strip(_BLANKS)
        if not text:
            continue
        if text.startswith(_BOM + ">"):
            text = text.removeprefix(_BOM)
        if text[0] == ">":
            yield header[1:], "".join(parts)
            header, parts = text, []
        elif text[0] == "#":
            raise FormatError(f"line {number} begins with '#', which is no FASTA: remove the line")
        else:
            parts.append(text)
    yield header[1:], "".join(parts)


def _parse_fastq(lines: Iterator[str], number: int) -> Iterator[Record]:
    """Records of four lines each, the first of which begins in line `number` of the file."""
    for header in lines:
        if not header.strip(_BLANKS):
            number += 1
            continue
        letters, plus, quality = next(lines, ""), next(lines, ""), next(lines, "")
        header, letters = header.rstrip(_BLANKS), letters.removesuffix("\n")
        if (
            not quality
            or len(quality.removesuffix("\n")) != len(letters)
            or (header[0], plus[0]) != ("@", "+")
            or not _repeats(header, plus)
        ):
            _refuse(number, header, letters, plus, quality)
        yield header[1:], letters
        number += 4


def _repeats(header: str, plus: str) -> bool:
    """Tell whether the third line of a FASTQ record repeats the header, as it may, or nothing."""
    return plus[1:].strip(_BLANKS) in ("", header[1:].strip(_BLANKS))


def _refuse(number: int, header: str, letters: str, plus: str, quality: str) -> NoReturn:
    """Tell what is wrong with the FASTQ record that begins in a line.

    Raises:
        FormatError: Always.
    """
    if not header.startswith("@"):
        fault = f"line {number} should begin with '@', as a FASTQ header does"
    elif not quality:
        fault = f"line {number}: the file ends within this record"
    elif not plus.startswith("+"):
        fault = (
            f"line {number + 2} should begin with '+', as the third line of a FASTQ record does: "
            "sequences of several lines are not read"
        )
    elif not _repeats(header, plus):
        fault = f"line {number + 2} repeats another header than line {number}'s"
    else:
        qualities = len(quality.removesuffix("\n"))
        fault = f"line {number + 3} has {qualities} qualities for {len(letters)} letters"
    raise FormatError(fault)
