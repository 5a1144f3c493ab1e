"""FASTA and FASTQ, line by line; whatever is neither is refused with its place.

No library serves: dnaio drops FASTA lines that begin with `#` and refuses headers that are not
ASCII, Biopython takes text before the first record for a comment. Which letters a sequence may hold
is for `sequences.records` to check.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

_BLANKS = " \t\n"
_BOM = "\xef\xbb\xbf"
"""UTF-8's byte order mark, each byte a character."""

Record = tuple[str, str]
"""Header without its `>` or `@`, and the sequence as it stands; each character is one byte."""


class FormatError(Exception):
    """A line that makes a file no FASTA or FASTQ; the message tells the line."""


def parse(lines: Iterable[str]) -> Iterator[Record]:
    """Give the records of a FASTA or FASTQ file; its first character tells which it is.

    Blank lines, and blanks at both ends of FASTA lines, mean nothing. A byte order mark at the
    beginning is skipped.

    Args:
        lines: Each ends in a line feed, but for the last; each character one byte.

    Raises:
        FormatError: If it is neither, or breaks off within a record.
    """
    numbered = enumerate(lines, start=1)
    for number, line in numbered:
        text = (line.removeprefix(_BOM) if number == 1 else line).lstrip(_BLANKS)
        if text.startswith(">"):
            yield from _parse_fasta(chain([(number, text)], numbered))
        elif text.startswith("@"):
            yield from _parse_fastq(chain([(number, text)], numbered))
        elif text:
            start = line[:10].encode("latin-1")
            raise FormatError(
                "it is neither FASTA nor FASTQ, plain or gz, bz2, xz, zst compressed: line "
                f"{number} starts with {start!r} instead of '>' or '@'"
            )


def _parse_fasta(lines: Iterator[tuple[int, str]]) -> Iterator[Record]:
    header = ""
    parts: list[str] | None = None
    for number, line in lines:
        text = line.strip(_BLANKS)
        if text.startswith(">"):
            if parts is not None:
                yield header, "".join(parts)
            header, parts = text[1:], []
        elif text.startswith("#"):
            raise FormatError(f"line {number} begins with '#', which is no FASTA: remove the line")
        elif text and parts is not None:
            parts.append(text)
    if parts is not None:
        yield header, "".join(parts)


def _parse_fastq(lines: Iterator[tuple[int, str]]) -> Iterator[Record]:
    """Records of four lines each; sequence and qualities are not broken into several."""
    for number, line in lines:
        header = line.strip(_BLANKS)
        if not header:
            continue
        letters, plus, quality = (next(lines, (0, ""))[1] for _ in range(3))
        if not quality:
            raise FormatError(f"line {number}: the file ends within this record")
        letters, plus, quality = (text.removesuffix("\n") for text in (letters, plus, quality))
        if not header.startswith("@"):
            raise FormatError(f"line {number} should begin with '@', as a FASTQ header does")
        if not plus.startswith("+"):
            raise FormatError(
                f"line {number + 2} should begin with '+', as the third line of a FASTQ record "
                "does: sequences of several lines are not read"
            )
        if plus[1:].strip() not in ("", header[1:]):
            raise FormatError(f"line {number + 2} repeats another header than line {number}'s")
        if len(letters) != len(quality):
            raise FormatError(
                f"line {number + 3} has {len(quality)} qualities for {len(letters)} letters"
            )
        yield header[1:], letters
