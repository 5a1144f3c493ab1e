"""The text of a sequence file: decompressed to its last byte, and handed on line by line."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import sys
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, Protocol, cast

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError, zstd.ZstdError)
"""What opening or reading raises when a file is not there, not readable, cut off or damaged."""

_BUFFER = 1 << 16
_ZSTD_OPTIONS: dict[int, int] = {
    zstd.DecompressionParameter.window_log_max: (
        zstd.DecompressionParameter.window_log_max.bounds()[1]  # as `zstd --long=31` needs
    )
}


def open_text(file: io.BufferedReader) -> io.TextIOWrapper:
    """Give the lines of a file, plain or gz, bz2, xz, zst compressed, whatever its name.

    Lines may end as on any system; they are given with a line feed. Each character is one byte of
    the file (Latin-1), so that nothing is refused here and nothing changed.

    Args:
        file: The file, at its beginning.
    """
    return io.TextIOWrapper(
        io.BufferedReader(_decompressed(file), _BUFFER), encoding="latin-1", newline=None
    )


class _Decompressor(Protocol):
    """What the decompressors of bz2, lzma and zstd have in common."""

    eof: bool
    needs_input: bool
    unused_data: bytes

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def _decompressed(file: io.BufferedReader) -> io.RawIOBase:
    """Choose by the file's first bytes, whatever its name."""
    head = file.peek(6)
    if head.startswith(b"\x1f\x8b"):
        return cast(io.RawIOBase, gzip.GzipFile(fileobj=file))
    if head.startswith(b"BZh"):
        return _Streams(file, bz2.BZ2Decompressor)
    if head.startswith(b"\xfd7zXZ\0"):
        return _Streams(file, lzma.LZMADecompressor)
    if re.match(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", head):  # a frame, or one to skip
        return _Streams(file, lambda: zstd.ZstdDecompressor(options=_ZSTD_OPTIONS))
    return cast(io.RawIOBase, file)


class _Streams(io.RawIOBase):
    """All compressed streams of a file; zeros between and behind them are padding.

    The standard library's readers of bz2 and xz take anything else that follows a stream for the
    end of the file: what lies behind a damaged head would be lost without an error.
    """

    def __init__(self, file: BinaryIO, new: Callable[[], object]) -> None:
        self._file = file
        self._new = new
        self._decompressor = cast(_Decompressor, new())

    def readable(self) -> bool:
        return True

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
