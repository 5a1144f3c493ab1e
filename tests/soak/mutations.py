"""Sequence files as they come: whole ones, by structure and by byte spoilt ones, compressed ones.

Each function takes a `random.Random` and draws from it alone.
"""

import bz2
import gzip
import io
import lzma
import random
import struct
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from tests.soak.strict_reader import BAM_END, BOM, Options, zstd

DNA, RNA, PROTEIN = b"ACGT", b"ACGU", b"ACDEFGHIKLMNPQRSTVWY"
STRANGE = b"RYSWKMBDHVNXJOUZ*-.~?0 \t\x0b\x0c\x00\x1a\x7f\xa0\xe9>@+#;acgtnlmk"
"""Bytes that a sequence holds now and then, rightly or not."""
IDS = [
    b"", b" ", b"a b", b"a\tb", b"\xc3\xbc", b"\xe9", b"\xc2\xa0", b"a\x00b", b"\x1b[31m", b"*",
    b"@", b">", b"+", b"a/1", b"a/2", b"a_1", b"a_2", b"a 1:N:0:AC", b"a 2:N:0:AC", b"HD\tVN:1.6",
    b"CO\tx", b"sp|P0DTC2|SPIKE", b"-", b"NA", b"\xe2\x80\xa8x", b"\xf0\x9f\xa7\xac", b"=1+1",
    b"x" * 70_000,
]  # fmt: skip
SUFFIXES = ["fa", "fq", "faa", "fna.gz", "bam", "txt", "gz", "sam", "h5", "fastq.bz2", ""]


class Case(NamedTuple):
    """Files as they are given, and how they are to be read."""

    files: list[bytes]
    untouched: list[bytes]
    """The same before bytes of compressed data were changed, which its checksums may forgive."""
    suffixes: list[str]
    """Of their names, which mean nothing."""
    options: Options
    may_refuse: bool
    """Whether to refuse them is right, too: htslib and libraries of compression check more."""
    what: str
    """What was done, in words."""


class Entry:
    """A record to be: its parts may become wrong."""

    def __init__(self, name: bytes, letters: bytes) -> None:
        self.name, self.letters = name, letters
        self.quality = b"I" * len(letters)
        self.plus = b""
        self.flag = 4


def draw_case(rng: random.Random) -> Case:
    """One or two files, most of them with something done to them."""
    letters = rng.choice(["protein", "protein", "dna", "contigs", "original"])
    options = Options(
        letters,
        rng.choice(["error", "error", "mates", "number"]),
        rng.choice([0, 0, 0, 1, 20]),
        rng.random() < 0.1,
        rng.random() < 0.8,
    )
    files, untouched, suffixes, said = [], [], [], []
    may_refuse = False
    for _ in range(rng.choice([1, 1, 1, 1, 2])):
        is_protein = (letters == "protein") ^ (rng.random() < 0.03)
        data, before, checks_more, words = draw_file(rng, is_protein)
        may_refuse |= checks_more
        files.append(data)
        untouched.append(before)
        suffixes.append(rng.choice(SUFFIXES))
        said.append(words)
    return Case(files, untouched, suffixes, options, may_refuse, " and ".join(said))


def draw_file(rng: random.Random, protein: bool) -> tuple[bytes, bytes, bool, str]:
    """A file, the same before compressed bytes were spoilt, `may_refuse`, and words for it."""
    entries = draw_entries(rng, protein)
    kind = rng.choice(["fasta", "fasta", "fastq", "fastq", "sam", "bam", "bam"])
    said, may_refuse = [kind], False
    for _ in range(rng.choice([0, 0, 1, 1, 2])):
        said.append(edit_entry(rng, entries))
    if kind == "bam":
        text = bam_text(entries)
        if rng.random() < 0.4:
            text, words = spoil(rng, text)
            said.append(words)
            may_refuse = True
        data = bgzf(rng, text)
    else:
        make = {"fasta": partial(fasta, rng), "fastq": fastq, "sam": sam}[kind]
        text = make(entries)
        for _ in range(rng.choice([0, 0, 1, 1, 2])):
            text, words = edit_text(rng, text)
            said.append(words)
        if rng.random() < 0.25:
            text, words = spoil(rng, text)
            said.append(words)
        data, words = compress(rng, text)
        said.append(words)
        may_refuse = kind == "sam" and words not in ("", "bgzf", "gz of 1 member(s)")
    before = data
    if data is not text and rng.random() < 0.35:
        data, words = spoil(rng, data)
        said.append(f"then {words}")
        may_refuse = True
    return data, before, may_refuse, ", ".join(filter(None, said))


def draw_entries(rng: random.Random, protein: bool) -> list[Entry]:
    """A few records, with names that may be pairs."""
    alphabet = PROTEIN if protein else rng.choice([DNA, DNA, DNA, RNA, DNA + b"N", DNA.lower()])
    names = [b"r%d" % i for i in range(rng.choice([0, 1, 2, 3, 5, 8]))]
    paired = rng.random() < 0.2
    names = [name for name in names for _ in range(1 + paired)]
    entries = []
    for number, name in enumerate(names):
        said = b" %d:N:0:ACGT" % (number % 2 + 1) if paired and rng.random() < 0.7 else b""
        size = rng.choice([1, 3, 20, 29, 30, 60, 61, 250])
        entry = Entry(name + said, bytes(rng.choices(alphabet, k=size)))
        entry.flag = (77, 141)[number % 2] if paired else 4
        entries.append(entry)
    return entries


def edit_entry(rng: random.Random, entries: list[Entry]) -> str:
    """Make something of one record that is wrong, or only odd."""
    if not entries:
        return ""
    entry, other = rng.choice(entries), rng.choice(entries)
    edits: dict[str, Callable[[], object]] = {
        "no letters": lambda: vars(entry).update(letters=b"", quality=b""),
        "odd name": lambda: vars(entry).update(name=rng.choice(IDS)),
        "odd letter": lambda: put_letter(rng, entry),
        "final *": lambda: vars(entry).update(
            letters=entry.letters + b"*", quality=entry.quality + b"I"
        ),
        "U for T": lambda: vars(entry).update(letters=entry.letters.replace(b"T", b"U")),
        "lower case": lambda: vars(entry).update(letters=entry.letters.lower()),
        "name of another": lambda: vars(entry).update(name=other.name),
        "same again": lambda: entries.append(other),
        "other qualities": lambda: vars(entry).update(
            quality=entry.quality[: rng.randrange(len(entry.quality) + 1)]
        ),
        "@ in quality": lambda: vars(entry).update(quality=b"@" + entry.quality[1:]),
        "+ with a name": lambda: vars(entry).update(plus=rng.choice([entry.name, b"other", b" "])),
        "description": lambda: vars(entry).update(
            name=entry.name + rng.choice([b" x>y", b"\tq", b"  1:N", b" \xff\xfe"])
        ),
        "flag": lambda: vars(entry).update(
            flag=rng.choice([0, 4, 16, 20, 77, 141, 69, 133, 256, 260, 516, 1028, 2052, 197, 5])
        ),
    }
    what = rng.choice(sorted(edits))
    edits[what]()
    return what


def put_letter(rng: random.Random, entry: Entry) -> None:
    at = rng.randrange(len(entry.letters) + 1)
    letter = bytes([rng.choice(STRANGE)])
    entry.letters = entry.letters[:at] + letter + entry.letters[at:]
    entry.quality = entry.quality + b"I"


# Formats ------------------------------------------------------------------------------------------


def fasta(rng: random.Random, entries: list[Entry]) -> bytes:
    width = rng.choice([7, 60, 1000])
    text = b""
    for entry in entries:
        text += b">" + entry.name + b"\n"
        for start in range(0, len(entry.letters), width):
            text += entry.letters[start : start + width] + b"\n"
    return text


def fastq(entries: list[Entry]) -> bytes:
    return b"".join(b"@%b\n%b\n+%b\n%b\n" % (e.name, e.letters, e.plus, e.quality) for e in entries)


def sam(entries: list[Entry]) -> bytes:
    text = b"@HD\tVN:1.6\n@CO\tmade up\n"
    for entry in entries:
        name, *_ = [*entry.name.split(), b"*"]
        fields = (name, entry.flag, entry.letters or b"*", entry.quality or b"*")
        text += b"%b\t%d\t*\t0\t0\t*\t*\t0\t0\t%b\t%b\n" % fields
    return text


def bam_text(entries: list[Entry]) -> bytes:
    """A BAM file before compression (SAM specification, section 4.2)."""
    head = b"@HD\tVN:1.6\n"
    text = b"BAM\1" + struct.pack("<I", len(head)) + head + struct.pack("<I", 0)
    codes = b"=ACMGRSVTWYHKDBN"
    for entry in entries:
        name = entry.name.split()[0][:254] + b"\0" if entry.name.split() else b"\0"
        letters = entry.letters.upper()
        nibbles = [max(codes.find(letter), 0) for letter in letters] + [0] * (len(letters) % 2)
        packed = bytes(a << 4 | b for a, b in zip(nibbles[::2], nibbles[1::2], strict=True))
        fixed = (-1, -1, len(name), 0, 4680, 0, entry.flag, len(letters), -1, -1, 0)
        body = struct.pack("<iiBBHHHiiii", *fixed) + name + packed + b"\x28" * len(letters)
        text += struct.pack("<I", len(body)) + body
    return text


# Text ---------------------------------------------------------------------------------------------


def edit_text(rng: random.Random, text: bytes) -> tuple[bytes, str]:
    """Do to the lines of a file what programs and people do."""
    lines = text.split(b"\n")
    at = rng.randrange(len(lines))

    def put(line: bytes) -> bytes:
        return b"\n".join([*lines[:at], line, *lines[at:]])

    edits: dict[str, Callable[[], bytes]] = {
        "CRLF": lambda: text.replace(b"\n", b"\r\n"),
        "CR": lambda: text.replace(b"\n", b"\r"),
        "one CR": lambda: text.replace(b"\n", b"\r", 1),
        "no final line end": lambda: text.removesuffix(b"\n"),
        "blank line": lambda: put(rng.choice([b"", b" ", b"\t ", b"\x0b"])),
        "blank lines at the end": lambda: text + b"\n \n\n",
        "blank lines at the start": lambda: b"\n \n" + text,
        "comment": lambda: put(rng.choice([b"#x", b";x", b"//"])),
        "BOM": lambda: BOM + text,
        "joined to a file with BOM": lambda: text + BOM + text,
        "UTF-16": lambda: text.decode("latin-1").encode("utf-16"),
        "joined to itself": lambda: text + text,
        "joined without line end": lambda: text.removesuffix(b"\n") + text,
        "line twice": lambda: put(lines[at]),
        "line lost": lambda: b"\n".join(lines[:at] + lines[at + 1 :]),
        "lines swapped": lambda: b"\n".join(lines[:at] + lines[at:][::-1]),
        "> in a line": lambda: put(b"ACGT>x"),
        "header alone": lambda: put(rng.choice([b">alone", b"@alone", b">", b"@"])),
        "indented": lambda: text.replace(b"\n", b"\n  "),
        "trailing blanks": lambda: text.replace(b"\n", b" \t\n"),
        "other format behind": lambda: text + b">z\nACGTACGT\n",
        "FASTQ behind": lambda: text + b"@z\nACGT\n+\nIIII\n",
        "NULs behind": lambda: text + bytes(rng.choice([1, 600])),
        "Ctrl-Z behind": lambda: text + b"\x1a",
        "HTML": lambda: b"<!DOCTYPE html>\n<html>\n" + text,
        "emptied": lambda: b"",
    }
    what = rng.choice(sorted(edits))
    return edits[what](), what


# Bytes --------------------------------------------------------------------------------------------


def spoil(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Change some bytes, whatever they mean."""
    if not data:
        return data, ""
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    at = min(a, len(data) - 1)
    if rng.random() < 0.3:  # where heads lie
        at = rng.randrange(min(len(data), 64))
    piece = bytes(rng.choices(range(256), k=rng.choice([1, 1, 2, 4])))
    edits: dict[str, Callable[[], bytes]] = {
        "flipped a bit": lambda: (
            data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        ),
        "changed bytes": lambda: data[:at] + piece + data[at + len(piece) :],
        "inserted bytes": lambda: data[:at] + piece + data[at:],
        "lost a byte": lambda: data[:at] + data[at + 1 :],
        "lost a slice": lambda: data[:a] + data[b:],
        "slice twice": lambda: data[:b] + data[a:b] + data[b:],
        "slices swapped": lambda: data[b:] + data[a:b] + data[:a],
        "cut off": lambda: data[:a],
        "last byte lost": lambda: data[:-1],
        "zeros": lambda: data[:a] + bytes(b - a) + data[b:],
        "junk behind": lambda: data + piece,
    }
    what = rng.choice(sorted(edits))
    return edits[what](), f"{what} at {at if what.endswith(('bit', 'bytes', 'byte')) else (a, b)}"


# Compression --------------------------------------------------------------------------------------


def compress(rng: random.Random, text: bytes) -> tuple[bytes, str]:
    """Compress in one or several members, or not at all."""
    kind = rng.choice(["", "", "", "gz", "bgzf", "bz2", "xz", "zst"])
    if not kind:
        return text, ""
    if kind == "bgzf":
        return bgzf(rng, text), kind
    packers: dict[str, Callable[[bytes], bytes]] = {
        "gz": lambda part: gzip_member(rng, part),
        "bz2": bz2.compress,
        "xz": lambda part: lzma.compress(
            part, check=rng.choice([lzma.CHECK_CRC64, lzma.CHECK_CRC32])
        ),
        "zst": lambda part: zstd.compress(
            part, options={zstd.CompressionParameter.checksum_flag: 1}
        ),
    }
    cuts = sorted(rng.randrange(len(text) + 1) for _ in range(rng.choice([0, 0, 1, 3])))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    if rng.random() < 0.1:
        parts.insert(rng.randrange(len(parts) + 1), b"")
    members = [packers[kind](part) for part in parts]
    if kind == "zst" and rng.random() < 0.1:
        members.insert(rng.randrange(len(members) + 1), b"\x50\x2a\x4d\x18\x03\0\0\0abc")
    padding = bytes(rng.choice([0, 0, 0, 4, 512])) if kind in ("gz", "xz") else b""
    return b"".join(members) + padding, f"{kind} of {len(members)} member(s)"


def gzip_member(rng: random.Random, part: bytes) -> bytes:
    buffer = io.BytesIO()
    name = rng.choice(["", "reads.fq"])
    with gzip.GzipFile(name, "wb", fileobj=buffer, mtime=0) as file:
        file.write(part)
    return buffer.getvalue()


def bgzf(rng: random.Random, text: bytes) -> bytes:
    """Blocks of bgzip (SAM specification, section 4.1)."""
    size = rng.choice([50, 300, 60_000])
    blocks = b""
    for start in range(0, len(text), size):
        packed = gzip.compress(text[start : start + size], mtime=0)
        head = packed[:3] + b"\4" + packed[4:10] + struct.pack("<HBBH", 6, 66, 67, 2)
        rest = packed[10:]
        blocks += head + struct.pack("<H", len(head) + 2 + len(rest) - 1) + rest
    return blocks + (BAM_END if rng.random() < 0.97 else b"")
