"""Unmapped reads of BAM and CRAM files, as pysam reads them, and of SAM.

Neither a reference nor an index is ever looked for, here or on the web.
"""

from __future__ import annotations

import io
import logging
import os
import re
import shlex
import shutil
import tempfile
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, Literal, NamedTuple

from virnucpro_pl.errors import InputError, UsageError
from virnucpro_pl.input.fastx import Record
from virnucpro_pl.input.faults import first_word, name_record
from virnucpro_pl.input.text import DAMAGED

log = logging.getLogger(__name__)

Kind = Literal["BAM", "CRAM", "SAM"]

_GZIP = b"\x1f\x8b"
_HEAD = 1 << 16
"""Bytes of compressed text that are looked at to tell SAM from FASTQ."""
_HEADER_LINE = re.compile(rb"@(CO\b|[A-Z]{2}\t[A-Za-z][A-Za-z0-9]:)")
"""How a header line of SAM begins."""
_READ_LINE = re.compile(rb"[!-=?A-~]+\t\d+\t[!-~]+\t\d+\t\d+\t[\d*]")
"""How a read of SAM begins: name, flag, reference, position, mapping quality, CIGAR."""
_FIELDS = 11
"""Fields that a read of SAM has at least."""

_FLAG, _LARGEST_FLAG = re.compile("[0-9]{1,5}"), (1 << 16) - 1

_UNMAPPED, _REVERSED, _QC_FAILED = 0x4, 0x10, 0x200
"""Bits of a read's flag; so are those below (SAM specification, section 1.4)."""
_MATE_BITS = 0x1 | 0x40 | 0x80
_MATES = {0x1 | 0x40: " 1:", 0x1 | 0x80: " 2:"}
"""Second word of the header of a pair's first and second read, as in Illumina's FASTQ files."""
_COMPLEMENT = str.maketrans("ACGTUMRWSYKVHDBNacgtumrwsykvhdbn", "TGCAAKYWSRMBDHVNtgcaakywsrmbdhvn")
"""Of all letters that BAM has, and U, in either case; of bytes beyond ASCII `str.upper` would make
others. pysam before 0.24 leaves ambiguous letters as they are."""

BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
_CRAM_ENDS = (
    bytes.fromhex("0f000000ffffffff0fe0454f4600000000010005bdd94f0001000606010001000100ee63014b"),
    bytes.fromhex("0b000000ffffffff0fe0454f460000000001000001000606010001000100"),
)
"""The last bytes of a whole file (SAM specification, section 4.1.2; CRAM 3 and 2.1, section 9).
htslib reports the lack of either only sometimes."""
CUT_OFF = "its last bytes are missing, so that it seems to be cut off"
_VIEW = "samtools view -b -f 4"
_NAMES_AND_PLACES = [b"required_fields=0x7"]
"""Name, flag and reference of each read of a CRAM file, for which no reference is needed."""


class Read(NamedTuple):
    """A read as its file has it."""

    name: str
    """Each character one byte, as in a `Record`."""
    flag: int
    letters: str
    is_placed: bool = False
    """Whether it stands at a place of a reference, as an unmapped read does beside its mate."""


def kind_of(head: bytes) -> Kind | None:
    """Tell by its first bytes whether a file is BAM, CRAM or SAM, whatever its name.

    A FASTQ file, too, may begin with `@CO` and a tab; its second line is neither a header line nor
    a read.

    Args:
        head: The first bytes; some thousands of them, where there are so many.
    """
    if head.startswith(b"CRAM"):
        return "CRAM"
    text = _inflated(head) if head.startswith(_GZIP) else head
    if text.startswith(b"BAM\1") and text is not head:
        return "BAM"
    text = re.sub(rb"\r\n?", b"\n", text)
    first, _, rest = text.partition(b"\n")
    if not _HEADER_LINE.match(first):
        return "SAM" if _is_read(first, text) else None
    second = rest.partition(b"\n")[0]
    is_sam = not second or _HEADER_LINE.match(second) or _is_read(second, rest)
    return "SAM" if is_sam else None


def _inflated(head: bytes) -> bytes:
    """The first bytes of what is compressed, in one block of BGZF or several."""
    text = b""
    while head.startswith(_GZIP) and len(text) < _HEAD:
        stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        try:
            text += stream.decompress(head, _HEAD)
        except zlib.error:
            break
        head = stream.unused_data
    return text


def _is_read(line: bytes, text: bytes) -> bool:
    """Tell whether a line is a read of SAM, as far as a text that ends within it can tell."""
    is_cut = len(line) == len(text)
    return bool(_READ_LINE.match(line)) and (is_cut or line.count(b"\t") >= _FIELDS - 1)


def parse_sam(lines: Iterable[str], path: Path, *, name: str) -> Iterator[Record]:
    """Give the reads of SAM; see `parse_alignments`.

    They are not left to htslib, to which each letter that it does not know is an N.

    Args:
        lines: Each ends in a line feed; each character one byte.
        path: The file's path.
        name: What messages call it.

    Raises:
        InputError: If a read is mapped, or the file is cut off or damaged.
    """
    reads = _Reads(name, shlex.quote(str(path)), "SAM")
    yield from _as_sequenced(reads.each(_reads_of_text(lines)), name)


def parse_alignments(
    file: io.BufferedReader, path: Path, kind: Kind, scratch: Path, *, name: str
) -> Iterator[Record]:
    """Give the reads: name and letters as sequenced; for pairs, `1:` or `2:` behind the name.

    Reads that failed quality control are given, too, and counted in the log.

    Args:
        file: The open file, at its beginning.
        path: Its path.
        kind: BAM or CRAM.
        scratch: Existing folder for a copy of what cannot be opened twice, such as a pipe.
        name: What messages call it.

    Raises:
        InputError: If a read is mapped, pysam is missing, or the file is cut off or damaged: with
            the last read before that.
        UsageError: If a pipe cannot be copied.
    """
    try:
        import pysam
    except ImportError as error:
        raise InputError(
            f"{name} is a {kind} file, and pysam, which reads them, is not installed: "
            "pip install 'virnucpro-pl[bam]'"
        ) from error
    verbosity = pysam.set_verbosity(0)
    try:
        with _regular(file, path, scratch) as place:
            reads = _Reads(name, shlex.quote(str(path)), kind)
            if kind == "CRAM":
                for read in reads.each(_reads_of_htslib(place, format_options=_NAMES_AND_PLACES)):
                    reads.refuse_placed(read)
            yield from _as_sequenced(reads.each(_reads_of_htslib(place)), name)
    finally:
        pysam.set_verbosity(verbosity)


def _as_sequenced(reads: Iterable[Read], name: str) -> Iterator[Record]:
    """Give reads as FASTQ would have them; say how many failed quality control."""
    failed = 0
    for read in reads:
        failed += bool(read.flag & _QC_FAILED)
        # A read without a name gets none from its mate's number.
        mate = _MATES.get(read.flag & _MATE_BITS, "") if read.name.strip() else ""
        letters = read.letters
        if read.flag & _REVERSED:
            letters = letters.translate(_COMPLEMENT)[::-1]
        yield f"{read.name}{mate}", letters
    if failed:
        log.warning(
            "%s: %d reads are marked as failing quality control (flag 0x200), and kept",
            *(name, failed),
        )


def _reads_of_text(lines: Iterable[str]) -> Iterator[Read]:
    """Give the reads of SAM.

    Raises:
        ValueError: If a line is none.
        EOFError: If the last one does not end.
    """
    in_header = True
    for line in lines:
        if not line.endswith("\n"):
            raise EOFError(CUT_OFF)
        if in_header and _HEADER_LINE.match(line.encode("latin-1")):
            continue
        in_header = False
        fields = line.removesuffix("\n").split("\t")
        if len(fields) < _FIELDS or line[0] == "@" or not all(fields[:_FIELDS]):
            raise ValueError(line)
        if not _FLAG.fullmatch(fields[1]) or int(fields[1]) > _LARGEST_FLAG:
            raise ValueError(line)
        name, flag, reference, *_, letters, quality = fields[:_FIELDS]
        letters = "" if letters == "*" else letters
        if quality != "*" and len(quality) != len(letters):
            raise ValueError(line)
        yield Read(name, int(flag), letters, reference != "*")


def _reads_of_htslib(place: Path, **options: Any) -> Iterator[Read]:
    """Give the reads of BAM or CRAM, as pysam has them.

    Raises:
        OSError, ValueError: If the file is cut off or damaged.
        EOFError: If it lacks its last bytes.
        NotImplementedError: If it is compressed by plain gzip.
    """
    with _opened(place, options) as file:
        for read in file.fetch(until_eof=True):
            name = read.query_name.encode().decode("latin-1")  # fails where it is no text
            yield Read(name, read.flag, read.query_sequence or "", read.reference_id >= 0)
        ends = {"BGZF": (BGZF_END,), "CUSTOM": _CRAM_ENDS}.get(file.compression)
    if ends is None:
        return  # plain gzip, which ends in a checksum
    with place.open("rb") as end:
        end.seek(max(0, end.seek(0, os.SEEK_END) - max(map(len, ends))))
        if not end.read().endswith(ends):
            raise EOFError(CUT_OFF)


class _Reads:
    """The reads of a file, each checked to be unmapped."""

    def __init__(self, name: str, word: str, kind: Kind) -> None:
        """Keep what the file is called in messages and in a shell, and what it is."""
        self._file_name = name
        self._word = word
        self._kind = kind
        self._read = ""

    def each(self, reads: Iterator[Read]) -> Iterator[Read]:
        """Yield them all.

        Raises:
            InputError: If one is mapped, or the file is cut off or damaged.
        """
        self._read = ""
        fault: Exception
        try:
            for number, read in enumerate(reads, start=1):
                self._read = name_record(number, first_word(read.name), "read")
                if not read.flag & _UNMAPPED:
                    raise self._refused("is mapped, and only unmapped reads are taken")
                yield read
            return
        except NotImplementedError as error:  # pysam wants to seek
            fault, what = error, "it is compressed by plain gzip, not by bgzip: bgzip it anew"
        except EOFError as error:
            fault, what = error, str(error)
        except (ValueError, *DAMAGED) as error:
            fault, what = error, f"it is cut off there, damaged, or no {self._kind}"
        past = f" past {self._read}" if self._read else ""
        raise InputError(f"{self._file_name} cannot be read{past}: {what}") from fault

    def refuse_placed(self, read: Read) -> None:
        """Refuse an unmapped read of CRAM that stands where its mate is mapped.

        Raises:
            InputError: If it stands there: its letters may be known by the reference alone.
        """
        if read.is_placed:
            raise self._refused("is placed on a reference, which is never looked for")

    def _refused(self, why: str) -> InputError:
        advice = (
            f"Write the unmapped ones to a file of their own: {_VIEW} {self._word} > unmapped.bam"
        )
        if self._word == "-":
            advice = f"Take the unmapped ones alone: put {_VIEW} - before this command in the pipe"
        return InputError(f"{self._file_name}: {self._read} {why}. {advice}")


@contextmanager
def _regular(file: io.BufferedReader, path: Path, scratch: Path) -> Iterator[Path]:
    """Give the path of a regular file with the content of one that may be a pipe.

    Standard input may be one, too, whatever its path. htslib opens a file by its name, and takes
    some names, but no absolute paths, for addresses.

    Raises:
        UsageError: If there is no room for a copy.
    """
    if path.is_file() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
        yield path.absolute()
        return
    with tempfile.NamedTemporaryFile(dir=scratch) as copy:
        try:
            shutil.copyfileobj(file, copy)
            copy.flush()
        except OSError as error:
            raise UsageError(f"{path} cannot be copied to {scratch}: {error}") from error
        yield Path(copy.name)


def _opened(place: Path, options: dict[str, Any]) -> Any:
    """Open a file with pysam, which says nothing but what it raises.

    Where it fails to open one, it fails once more as it throws its object away, and prints that.
    """
    import pysam

    with redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an end that is missing
        return pysam.AlignmentFile(
            str(place), check_sq=False, check_header=False, ignore_truncation=True, **options
        )
