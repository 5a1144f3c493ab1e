"""The text of a sequence file: decompressed to its last byte, and refused where it is no text."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from virnucpro_pl.errors import InputError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["DAMAGED", "SequenceText"]

DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError, zstd.ZstdError)
"""What opening or reading raises when a file is not there, not readable, cut off or damaged."""

_BUFFER = 1 << 16
_BOM = b"\xef\xbb\xbf"
_PLAIN = bytes((*b"\t\n\r", *range(32, 127)))
_STRANGE = re.compile(rb"[^\t\n\r -~]")
_COMMENT = re.compile(rb"[\n\r][ \t]*#")
_ZSTD_OPTIONS: dict[int, int] = {
    zstd.DecompressionParameter.window_log_max: (
        zstd.DecompressionParameter.window_log_max.bounds()[1]  # as `zstd --long=31` needs
    )
}


class SequenceText(io.RawIOBase):
    """A FASTA or FASTQ file, plain or gz, bz2, xz, zst compressed, whatever its name.

    Refuses what dnaio would drop without a word (FASTA lines beginning with `#`, control characters
    at the ends of lines) or refuse without naming the place (letters that are not ASCII).

    Attributes:
        first: `>` or `@`, the first character that is not blank; empty until it was read.
    """

    def __init__(self, path: Path, file: io.BufferedReader) -> None:
        """Look at the file's first bytes.

        Args:
            path: Its name, for messages.
            file: The file, at its beginning; it is not closed here.
        """
        self.path = path
        self.first = b""
        self._source = _decompressed(file)
        self._line_feeds = self._carriage_returns = 0
        self._at_line_start = True

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read some bytes into any writable buffer; 0 at the end of the file.

        Raises:
            InputError: If they are no FASTA or FASTQ.
        """
        count = self._source.readinto(buffer)
        data = bytes(memoryview(buffer)[:count])
        if not self.first:
            self._recognise(data.lstrip())
        if data.translate(None, _PLAIN):
            self._refuse_strange(data)
        if self.first == b">":
            self._refuse_comment(data)
        self._line_feeds += data.count(b"\n")
        self._carriage_returns += data.count(b"\r")
        return count

    def _recognise(self, start: bytes) -> None:
        self.first = start[:1]
        if self.first not in (b"", b">", b"@"):
            mark = "a byte order mark, " if start.startswith(_BOM) else ""
            raise InputError(
                f"{self.path} is neither FASTA nor FASTQ, plain or gz, bz2, xz, zst compressed: "
                f"it starts with {mark}{start[:10]!r} instead of '>' or '@'"
            )

    def _refuse_strange(self, data: bytes) -> None:
        found = _STRANGE.search(data)
        assert found
        at = found.start()
        raise InputError(
            f"{self.path}: line {self._line(data[:at])} holds the byte 0x{data[at]:02x} in "
            f"{data[max(at - 10, 0) : at + 10]!r}: only printable ASCII characters are accepted"
        )

    def _refuse_comment(self, data: bytes) -> None:
        probe = (b"\n" if self._at_line_start else b".") + data
        if b"#" in data and (found := _COMMENT.search(probe)):
            raise InputError(
                f"{self.path}: line {self._line(probe[1 : found.end()])} begins with '#', "
                "which is no FASTA: remove the line"
            )
        self._at_line_start = probe.rstrip(b" \t").endswith((b"\n", b"\r"))

    def _line(self, before: bytes) -> int:
        """Number of the line in which the text ends that was read before, and then `before`."""
        line_feeds = self._line_feeds + before.count(b"\n")
        return 1 + max(line_feeds, self._carriage_returns + before.count(b"\r"))


class _Readable(Protocol):
    def readinto(self, buffer: Any, /) -> int: ...


class _Decompressor(Protocol):
    """What the decompressors of bz2, lzma and zstd have in common."""

    eof: bool
    needs_input: bool
    unused_data: bytes

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def _decompressed(file: io.BufferedReader) -> _Readable:
    """Choose by the file's first bytes, whatever its name."""
    head = file.peek(6)
    if head.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=file)
    if head.startswith(b"BZh"):
        return _Streams(file, bz2.BZ2Decompressor)
    if head.startswith(b"\xfd7zXZ\0"):
        return _Streams(file, lzma.LZMADecompressor)
    if re.match(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", head):  # a frame, or one to skip
        return _Streams(file, lambda: zstd.ZstdDecompressor(options=_ZSTD_OPTIONS))
    return file


class _Streams:
    """All compressed streams of a file; zeros between and behind them are padding.

    The standard library's readers of bz2 and xz take anything else that follows a stream for the
    end of the file: what lies behind a damaged head would be lost without an error.
    """

    def __init__(self, file: BinaryIO, new: Callable[[], object]) -> None:
        self._file = file
        self._new = new
        self._decompressor = cast(_Decompressor, new())

    def readinto(self, buffer: Any, /) -> int:
        data = b""
        while not data:
            compressed = b""
            if self._decompressor.eof:
                compressed = self._next_stream()
                if not compressed:
                    return 0
                self._decompressor = cast(_Decompressor, self._new())
            elif self._decompressor.needs_input:
                compressed = self._file.read(_BUFFER)
                if not compressed:
                    raise EOFError("its compressed data ends too early")
            data = self._decompressor.decompress(compressed, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _next_stream(self) -> bytes:
        start = self._decompressor.unused_data.lstrip(b"\0")
        while not start and (block := self._file.read(_BUFFER)):
            start = block.lstrip(b"\0")
        return start
