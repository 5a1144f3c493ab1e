"""What sequence files hold by docs/inputs.md: read in one go, without any of the package's code."""

import bz2
import lzma
import re
import struct
import sys
import zlib
from collections import Counter
from typing import NamedTuple

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BOM = b"\xef\xbb\xbf"
BAM_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
BASES = b"ACGTRYSWKMBDHVN"
COMPLEMENT = bytes.maketrans(b"ACGTMRWSYKVHDBN", b"TGCAKYWSRMBDHVN")
PRINTABLE = bytes(range(33, 127)).replace(b">", b"")
LETTERS = {
    "protein": b"ACDEFGHIKLMNPQRSTVWYXBUZOJ",
    "dna": BASES + b"U",
    "contigs": BASES + b"U",
    "original": PRINTABLE,
}
TABLES = ("contigs", "original")
SAM_HEADER = re.compile(rb"@(CO\b|[A-Z][A-Z]\t[A-Za-z][A-Za-z0-9]:)")
SAM_READ = re.compile(rb"[^\t@>]+\t\d+\t[^\t]+\t\d+\t\d+\t[^\t]+(\t[^\t]+){5}")


class Refused(Exception):
    """The files are to be refused; says why."""


class Options(NamedTuple):
    """How the files are to be read."""

    letters: str
    """`protein`, `dna`, `contigs` or `original`."""
    repeated_ids: str = "error"
    min_length: int = 0
    allow_empty: bool = False
    check_molecule: bool = True


def read(files: list[bytes], options: Options) -> list[tuple[str, bytes]]:
    """Ids and sequences of all files, in order."""
    records = []
    for data in files:
        own = [(header, clean(s, options)) for header, s in records_of(data)]
        if not own and not options.allow_empty:
            raise Refused("no record")
        if options.check_molecule:
            check_molecule([letters for _, letters in own], options)
        records += own
    for _, letters in records:
        if letters.strip(LETTERS[options.letters]):
            raise Refused("a letter that is none")
        if not letters and not (options.letters in TABLES or options.min_length):
            raise Refused("no letters")
    names = rename([header for header, _ in records], options.repeated_ids)
    if options.letters in ("dna", "contigs"):
        records = [(header, letters.replace(b"U", b"T")) for header, letters in records]
    rows = [(n, s) for n, (_, s) in zip(names, records, strict=True)]
    if options.letters not in TABLES:  # which have a row for short ones, too
        rows = [(name, letters) for name, letters in rows if len(letters) >= options.min_length]
    if not rows and not options.allow_empty:
        raise Refused("no record is long enough")
    return rows


def clean(letters: bytes, options: Options) -> bytes:
    letters = letters.upper().translate(None, b" \t")
    return letters[: -letters.endswith(b"*") or None] if options.letters == "protein" else letters


def check_molecule(sequences: list[bytes], options: Options) -> None:
    if options.letters == "protein":
        long = [s for s in sequences if len(s) >= 30]
        if 2 * sum(not s.strip(b"ACGTUN") for s in long) > len(long):
            raise Refused("DNA, not proteins")
    else:
        letters = [b for s in sequences for b in s if 65 <= b <= 90]
        if 10 * sum(b not in BASES + b"U" for b in letters) > len(letters):
            raise Refused("proteins, not DNA")


def rename(headers: list[bytes], rule: str) -> list[str]:
    """Ids of headers, by what `--data.repeated_ids` says."""
    words = [header.split() for header in headers]
    if not all(words):
        raise Refused("no id")
    try:
        ids = [word[0].decode() for word in words]
    except UnicodeDecodeError as error:
        raise Refused("an id that is no UTF-8") from error
    if not all(map(str.isprintable, ids)):
        raise Refused("an id that cannot be printed")
    count = Counter(ids)
    if rule == "error" and len(count) < len(ids):
        raise Refused("an id twice")
    if rule == "number":
        return number(ids)
    if rule == "mates":
        return pair(ids, [word[1][:2] if len(word) > 1 else b"" for word in words], count)
    return ids


def number(ids: list[str]) -> list[str]:
    taken, seen = set(ids), set()
    named = []
    for name in ids:
        new, n = name, 0
        while new in seen or (n and new in taken):
            n += 1
            new = f"{name}_{n}"
        seen.add(new)
        named.append(new)
    return named


def pair(ids: list[str], said: list[bytes], count: Counter[str]) -> list[str]:
    named = list(ids)
    for name in count:
        rows = [row for row, other in enumerate(ids) if other == name]
        if len(rows) > 2:
            raise Refused("an id more than twice")
        if len(rows) == 2:
            says = [{b"1:": 1, b"2:": 2}.get(said[row]) for row in rows]
            first = says[0] or (3 - says[1] if says[1] else 1)
            if None not in says and says[0] == says[1]:
                raise Refused("two mates of one number")
            named[rows[0]], named[rows[1]] = f"{name}/{first}", f"{name}/{3 - first}"
    if len(set(named)) < len(named):
        raise Refused("a mate's id is taken")
    return named


def records_of(data: bytes) -> list[tuple[bytes, bytes]]:
    """Headers and sequences of one file, whatever its format."""
    text = expand(data)
    if data[:2] == b"\x1f\x8b" and text.startswith(b"BAM\1"):
        return read_bam(text, is_whole=data.endswith(BAM_END))
    text = re.sub(rb"\r\n?", b"\n", text)
    lines = text.split(b"\n")
    if SAM_READ.match(lines[0]) or (
        SAM_HEADER.match(lines[0])
        and (not any(lines[1:2]) or SAM_HEADER.match(lines[1]) or SAM_READ.match(lines[1]))
    ):
        if data[:4] == b"\x1f\x8b\x08\x04" and data[12:16] == b"BC\2\0" and data[-28:] != BAM_END:
            raise Refused("the last block of bgzip is missing")
        return read_sam(text)
    while lines and not (first := lines[0].removeprefix(BOM).lstrip(b" \t")):
        del lines[0]
    if not lines:
        return []
    lines[0] = first
    if lines[0].startswith(b">"):
        return read_fasta(lines)
    if lines[0].startswith(b"@"):
        return read_fastq(lines)
    raise Refused("neither FASTA nor FASTQ")


def read_fasta(lines: list[bytes]) -> list[tuple[bytes, bytes]]:
    records: list[list[bytes]] = []
    for line in lines:
        line = line.strip(b" \t")
        line = line.removeprefix(BOM) if line.startswith(BOM + b">") else line
        if line.startswith(b">"):
            records.append([line[1:], b""])
        elif b">" in line or line.startswith(b"#"):
            raise Refused("a header within a line, or a comment")
        else:
            records[-1][1] += line
    return [(header, letters) for header, letters in records]


def read_fastq(lines: list[bytes]) -> list[tuple[bytes, bytes]]:
    records = []
    while lines:
        if not lines[0].strip(b" \t"):
            del lines[0]
            continue
        header, letters, plus, quality = (*lines[:4], b"", b"", b"")[:4]
        is_cut = len(lines) < 4 or (len(lines) == 4 and not quality)  # no line end, no fourth line
        repeated = plus[1:].strip(b" \t") in (b"", header[1:].strip(b" \t"))
        if header[:1] != b"@" or plus[:1] != b"+" or not repeated or is_cut:
            raise Refused("no FASTQ")
        if len(letters) != len(quality):
            raise Refused("other qualities than letters")
        records.append((header[1:], letters))
        del lines[:4]
    return records


def read_bam(text: bytes, is_whole: bool) -> list[tuple[bytes, bytes]]:
    """SAM specification, section 4.2."""
    if not is_whole:
        raise Refused("no end of file")
    records = []
    try:
        at = 8 + struct.unpack_from("<I", text, 4)[0]
        (references,) = struct.unpack_from("<I", text, at)
        at += 4
        for _ in range(references):
            at += 8 + struct.unpack_from("<I", text, at)[0]
        while at < len(text):
            (size,) = struct.unpack_from("<I", text, at)
            records.append(read_of(text[at + 4 : at + 4 + size], size))
            at += 4 + size
    except struct.error as error:
        raise Refused("no BAM") from error
    return records


def read_of(body: bytes, size: int) -> tuple[bytes, bytes]:
    """Header and letters of one read of BAM."""
    _, _, name_size, _, _, cigar, flag, length = struct.unpack_from("<iiBBHHHi", body)
    start = 32 + name_size + 4 * cigar
    end = start + (length + 1) // 2
    if len(body) < size or length < 0 or end + length > size:
        raise Refused("a read that is cut")
    name = body[32 : 32 + name_size]
    name = name.partition(b"\0")[0]
    if not name.strip():
        raise Refused("a read without a name")
    codes = body[start:end].hex()[:length].encode()
    letters = codes.translate(bytes.maketrans(b"0123456789abcdef", b"=ACMGRSVTWYHKDBN"))
    return read_flags(name, flag, letters)


def read_flags(name: bytes, flag: int, letters: bytes) -> tuple[bytes, bytes]:
    if not flag & 4:
        raise Refused("a mapped read")
    if flag & 16:
        letters = letters.translate(COMPLEMENT)[::-1]
    mate = {0x41: b" 1:", 0x81: b" 2:"}.get(flag & 0xC1, b"")
    return name + mate, letters


def read_sam(text: bytes) -> list[tuple[bytes, bytes]]:
    records = []
    if text and not text.endswith(b"\n"):
        raise Refused("no end of file")
    lines = text.split(b"\n")[:-1]
    while lines and SAM_HEADER.match(lines[0]):
        del lines[0]
    for line in lines:
        fields = line.split(b"\t")
        is_read = len(fields) >= 11 and all(fields[:11]) and re.fullmatch(b"[0-9]{1,5}", fields[1])
        if line.startswith(b"@") or not is_read or int(fields[1]) > 65535:
            raise Refused("no read of SAM")
        letters = b"" if fields[9] == b"*" else fields[9]
        if fields[10] not in (b"*", b"") and len(fields[10]) != len(letters):
            raise Refused("other qualities than letters")
        records.append(read_flags(fields[0], int(fields[1]), letters.upper()))
    return records


def expand(data: bytes) -> bytes:
    """The content of all members of a compressed file, or the file itself."""
    for magic, new in (
        (rb"\x1f\x8b", lambda: zlib.decompressobj(31)),
        (rb"BZh", bz2.BZ2Decompressor),
        (rb"\xfd7zXZ\0", lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ)),
        (rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", zstd.ZstdDecompressor),
    ):
        if re.match(magic, data, re.DOTALL):
            return expand_members(data, new)
    return data


def expand_members(data: bytes, new) -> bytes:
    text = b""
    while data:
        member = new()
        try:
            text += member.decompress(data)
        except (zlib.error, OSError, lzma.LZMAError, zstd.ZstdError, EOFError) as error:
            raise Refused("damaged") from error
        if not member.eof:
            raise Refused("cut off")
        data = member.unused_data.lstrip(b"\0")
    return text
