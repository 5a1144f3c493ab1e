"""FASTA files of results, plain or compressed."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

_LINE = 60
"""Bases of a line."""


@contextmanager
def open_fasta(path: Path, *, compress: bool) -> Iterator[IO[bytes]]:
    """Open a file for records; with `compress` it is gzipped, and its name ends in `.gz`."""
    with path.with_name(f"{path.name}.gz" if compress else path.name).open("wb") as raw:
        if not compress:
            yield raw
            return
        # Without name and time, so that the same calls give the same bytes.
        with gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
            yield cast(IO[bytes], file)


def write_record(file: IO[bytes], header: str, letters: bytes) -> None:
    """Write one record in lines of 60 letters."""
    lines = [letters[i : i + _LINE] for i in range(0, len(letters), _LINE)]
    file.write(b"\n".join([b">%b" % header.encode(), *lines, b""]))
