"""Unmapped BAM, CRAM and SAM: the reads of the same FASTQ, or a fault with its place."""

import gzip
import hashlib
import http.server
import logging
import os
import re
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pysam
import pytest

from virnucpro_pl.errors import InputError
from virnucpro_pl.input.alignments import BGZF_END, kind_of, parse_alignments
from virnucpro_pl.input.alphabets import DNA, PRINTABLE, PROTEIN
from virnucpro_pl.input.files import records_of
from virnucpro_pl.input.reader import read_records

# pysam fails a second time where it cannot open a file; Python then prints that to nowhere.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

CHROMOSOME = {"HD": {"VN": "1.6"}, "SQ": [{"SN": "chr1", "LN": 5000}]}
MODES = {"bam": "wb", "cram": "wc", "sam": "w"}


def draw(count, length=60, seed=0):
    """Names and letters of some reads."""
    bases = np.random.default_rng(seed).choice(list("ACGTACGTACGTN"), (count, length))
    return [(f"r{i}", "".join(letters)) for i, letters in enumerate(bases)]


def write(path, reads, header=None, **options):
    """Write reads (name, letters, flag 4 unless given), in the format that the suffix names."""
    head = pysam.AlignmentHeader.from_dict(header or {"HD": {"VN": "1.6"}})
    with pysam.AlignmentFile(path, MODES[path.suffix[1:]], header=head, **options) as file:
        for name, letters, *flag in reads:
            read = pysam.AlignedSegment(head)
            read.query_name, read.flag, read.query_sequence = name, *(flag or [4]), letters
            if letters:
                read.query_qualities = pysam.qualitystring_to_array("I" * len(letters))
            if not read.flag & 4:
                read.reference_id, read.reference_start = 0, 5
                read.cigarstring = f"{len(letters)}M"
            file.write(read)
    return path


def parse(path):
    return list(records_of(path, path.parent))


def bgzip(*texts):
    """One block for each text, as programs write them that end a block with a line; no end."""
    blocks = []
    for text in texts:
        deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
        data = deflate.compress(text) + deflate.flush()
        head = bytes.fromhex("1f8b08040000000000ff060042430200")
        size = struct.pack("<H", len(head) + 2 + len(data) + 8 - 1)
        end = struct.pack("<II", zlib.crc32(text), len(text))
        blocks.append(head + size + data + end)
    return b"".join(blocks)


def parse_until_fault(path):
    """Records before the file is refused, and why it is; None if it is not."""
    seen = []
    try:
        for record in records_of(path, path.parent):
            seen.append(record)
    except InputError as error:
        return seen, str(error)
    return seen, None


# What it is ---------------------------------------------------------------------------------------

READ = b"r1\t4\t*\t0\t0\t*\t*\t0\t0\tACGT\tIIII\n"


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"CRAM\3\0", "CRAM"),
        (gzip.compress(b"BAM\1rest"), "BAM"),
        (gzip.compress(b"") + gzip.compress(b"BAM\1rest"), "BAM"),
        (gzip.compress(b"BAM\1" + bytes(9000))[:30], "BAM"),
        (b"@HD\tVN:1.6\n", "SAM"),
        (b"@HD\tVN:1.6\r\n" + READ, "SAM"),
        (b"@HD\tVN:1.6\r" + READ, "SAM"),
        (b"@HD\tVN:1.6\rACGT\r+\rIIII\r", None),
        (b"@SQ\tSN:chr1\tLN:9\n@SQ\tSN:chr2\tLN:9\n", "SAM"),
        (b"@CO\tany words\n" + READ, "SAM"),
        (gzip.compress(b"@RG\tID:a\n" + READ), "SAM"),
        (READ, "SAM"),
        (READ.replace(b"*", b"chr1", 1) + READ, "SAM"),
        (READ[:24] + b"A" * 9000, "SAM"),
        (b"", None),
        (b"\n", None),
        (b">r1\t4\t*\t0\t0\t*\t*\t0\t0\tACGT\tIIII\n", None),
        (b"@HD\nACGT\n+\nIIII\n", None),
        (b"@CO\tsomething\nACGT\n+\nIIII\n", None),
        (b"@HD\tVN:1.6\nACGT\n+\nIIII\n", None),
        (b"@HD\tVN:1.6\nAC\tGT\n+\nII\tII\n", None),
        (gzip.compress(b"@RG\tID:a\nACGT\n+\nIIII\n"), None),
        (b"r1\t4\tx\t0\t0\t*\tsix fields\n", None),
        (b"r1\tx\t*\t0\t0\t*\t*\t0\t0\tACGT\tIIII\n", None),
        (b"BAM\1", None),
        (b"\x1f\x8b\x08 no gzip", None),
    ],
)
def test_kind_is_told_by_content(head, kind):
    assert kind_of(head) == kind


def test_fastq_that_looks_like_a_header_is_fastq(tmp_path):
    path = tmp_path / "reads.sam"
    path.write_text("@CO\tsomething\nACGT\n+\nIIII\n@HD\tVN:1.6\nAC\n+\nII\n")
    assert parse(path) == [("CO\tsomething", "ACGT"), ("HD\tVN:1.6", "AC")]


# What is read -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["bam", "cram", "sam"])
def test_records_and_hash_are_those_of_the_fastq(tmp_path, suffix):
    reads = draw(2000)
    fastq = tmp_path / "reads.fq"
    fastq.write_text("".join(f"@{n}\n{s}\n+\n{'I' * len(s)}\n" for n, s in reads))
    made = write(tmp_path / f"x.{suffix}", reads).rename(tmp_path / "of no name")
    assert parse(made) == parse(fastq) == reads
    hashes = []
    for number, path in enumerate((made, fastq)):
        (tmp_path / str(number)).mkdir()
        hashes.append(read_records(path, DNA, tmp_path / str(number)).sha256)
    assert hashes[0] == hashes[1]
    with pytest.raises(InputError, match=r"holds DNA, it seems, not protein"):
        read_records(made, PROTEIN, tmp_path)


@pytest.mark.parametrize("suffix", ["bam", "cram", "sam"])
def test_flags_become_mates_and_reads_as_sequenced(tmp_path, suffix, caplog):
    reads = [
        ("a", "ACGTR", 77), ("a", "GGT", 141), ("b", "ACMGRSVTWYHKDBN", 4 + 16),
        ("c", "CCN", 4 + 512), ("d", "TT", 69 + 16), ("e", "TA", 133 + 512), ("f", None, 4),
        ("g", "A", 1 + 4 + 64 + 128),
    ]  # fmt: skip
    path = write(tmp_path / f"x.{suffix}", reads)
    with caplog.at_level(logging.INFO):
        assert parse(path) == [
            ("a 1:", "ACGTR"), ("a 2:", "GGT"), ("b", "NVHMDRWABSYCKGT"), ("c", "CCN"),
            ("d 1:", "AA"), ("e 2:", "TA"), ("f", ""), ("g", "A"),
        ]  # fmt: skip
    [line] = caplog.messages
    assert line.startswith(f"{path}: 2 reads are marked as failing quality control")


@pytest.mark.parametrize("suffix", ["bam", "cram"])
def test_name_of_any_letters_is_that_of_the_fastq(tmp_path, suffix):
    names = ["\N{LATIN SMALL LETTER U WITH DIAERESIS}1", "\N{DNA DOUBLE HELIX}2"]
    path = write(tmp_path / f"x.{suffix}", [(name, "ACGT") for name in names])
    store = read_records(path, DNA, tmp_path)
    assert store.ids(np.arange(2)) == names


def test_read_of_bam_without_a_name_gets_none_from_its_mates_number(tmp_path):
    path = write(tmp_path / "x.bam", [("a", "ACGT", 77)])
    text = gzip.decompress(path.read_bytes())
    at = text.index(b"a\0\x12\x48")  # the name; before it, in 32 bytes, its length and others
    size, fixed = len(text) - at + 31, bytearray(text[at - 32 : at])
    fixed[8] = 1
    path.write_bytes(text[: at - 36] + size.to_bytes(4, "little") + fixed + text[at + 1 :])
    pysam.tabix_compress(str(path), str(tmp_path / "y.bam"))
    with pytest.raises(InputError, match=r"record 1: it has no id|cannot be read"):
        read_records(tmp_path / "y.bam", DNA, tmp_path)


@pytest.mark.parametrize(
    ("letter", "alphabet", "message"),
    [
        ("E", DNA, "'E' at position 3 is no base"),
        ("-", DNA, "'-' at position 3 is no base"),
        ("=", PRINTABLE, None),
        ("e", PROTEIN, None),
        ("\xff", DNA, "the byte 0xff at position 3 is no base"),
        ("\xdf", PRINTABLE, "the byte 0xdf at position 3"),
    ],
)
def test_letter_of_sam_is_kept_or_refused_and_never_an_n(tmp_path, letter, alphabet, message):
    path, letters = tmp_path / "x", f"AC{letter}GTacgtacgtn"
    path.write_text(f"a\t4\t*\t0\t0\t*\t*\t0\t0\t{letters}\t*\n", encoding="latin-1")
    if message:
        with pytest.raises(InputError, match=message):
            read_records(path, alphabet, tmp_path)
    else:
        store = read_records(path, alphabet, tmp_path)
        assert store.sequences(np.arange(1)) == [letters.upper().encode()]


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
@pytest.mark.parametrize("header", ["", "@HD\tVN:1.6\n", "@CO\tsome\n@CO\twords\n"])
def test_sam_is_read_without_a_header_and_gzipped(tmp_path, compress, header):
    reads = draw(300)
    text = "".join(f"{n}\t4\t*\t0\t0\t*\t*\t0\t0\t{s}\t*\tNM:i:0\n" for n, s in reads)
    (tmp_path / "x").write_bytes(compress((header + text).encode()))
    assert parse(tmp_path / "x") == reads


def test_no_read_is_an_empty_file(tmp_path):
    with pytest.raises(InputError, match=r"x\.bam is empty"):
        read_records(write(tmp_path / "x.bam", []), DNA, tmp_path)


@pytest.mark.parametrize("suffix", ["bam", "cram", "sam"])
def test_pipe_is_read_and_nothing_is_left_of_it(tmp_path, suffix):
    reads = draw(3000)
    made = write(tmp_path / f"x.{suffix}", reads)
    pipe, scratch = tmp_path / "pipe", tmp_path / "scratch"
    os.mkfifo(pipe)
    scratch.mkdir()
    feeder = threading.Thread(target=lambda: pipe.write_bytes(made.read_bytes()))
    feeder.start()
    assert list(records_of(pipe, scratch)) == reads
    feeder.join()
    assert not list(scratch.iterdir())


def test_open_file_of_another_path_is_copied(tmp_path):
    reads = draw(5)
    path = write(tmp_path / "x.bam", reads)
    with path.open("rb") as file:  # as standard input is
        assert kind_of(file.peek(1)) == "BAM"
        records = parse_alignments(file, Path("-"), "BAM", tmp_path, name="standard input")
        assert list(records) == reads
    assert list(tmp_path.iterdir()) == [path]
    path = write(tmp_path / "x.bam", [("a", "ACGT", 0)], CHROMOSOME)
    with path.open("rb") as file, pytest.raises(InputError) as caught:
        list(parse_alignments(file, Path("-"), "BAM", tmp_path, name="standard input"))
    assert str(caught.value).startswith("standard input: read 1 (a) is mapped")
    assert "put samtools view -b -f 4 - before this command" in str(caught.value)


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", [0, 16, 73, 256, 2048])
@pytest.mark.parametrize("suffix", ["bam", "cram", "sam"])
def test_mapped_read_is_named_with_the_command_that_leaves_it_out(tmp_path, suffix, flag, capfd):
    reads = [(*read, 4) for read in draw(5)]
    reads[3] = ("mine", "ACGT" * 9, flag)
    options = {"format_options": [b"no_ref=1"]} if suffix == "cram" else {}
    path = write(tmp_path / f"it's.{suffix}", reads, CHROMOSOME, **options)
    with pytest.raises(InputError) as caught:
        parse(path)
    quoted = f"'{tmp_path}/it'\"'\"'s.{suffix}'"
    assert f"{path}: read 4 (mine) is mapped" in str(caught.value)
    assert f"samtools view -b -f 4 {quoted} > unmapped.bam" in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def server():
    """A server on this machine, and the paths that it was asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", asked
        running.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("placed", "message"),
    [(False, r"read 3 \(r2\) is mapped"), (True, r"read 3 \(r2\) is placed on a reference")],
)
def test_cram_with_a_reference_is_refused_without_a_look_for_it(
    tmp_path, server, monkeypatch, capfd, placed, message
):
    address, asked = server
    monkeypatch.setenv("REF_PATH", f"{address}/%s")
    letters = "".join(np.random.default_rng(0).choice(list("ACGT"), 5000))
    reference = tmp_path / "ref.fa"
    reference.write_text(f">chr1\n{letters}\n")
    checksum = hashlib.md5(letters.encode()).hexdigest()
    line = {"SN": "chr1", "LN": 5000, "UR": f"{address}/ref.fa", "M5": checksum}
    head = pysam.AlignmentHeader.from_dict({"HD": {"VN": "1.6"}, "SQ": [line]})
    path = tmp_path / "x.cram"
    with pysam.AlignmentFile(path, "wc", header=head, reference_filename=str(reference)) as file:
        for number in range(50):
            read = pysam.AlignedSegment(head)
            read.query_name, read.flag = f"r{number}", 4
            if number >= 2:
                read.flag, read.reference_id, read.reference_start = 4 * placed, 0, number
                read.cigarstring = None if placed else "100M"
            read.query_sequence = letters[number : number + 100]
            file.write(read)
    for file in tmp_path.glob("ref.fa*"):
        file.unlink()
    asked.clear()
    with pytest.raises(InputError, match=message):
        parse(path)
    assert not asked
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", ["bam", "cram", "sam", "sam.gz", "sam.bgz"])
def test_file_cut_anywhere_is_refused_behind_its_last_read(tmp_path, suffix, capfd):
    reads = draw(700, 150)
    form = suffix.partition(".")[0]
    options = {"format_options": [b"seqs_per_slice=100"]} if suffix == "cram" else {}
    source = write(tmp_path / f"x.{form}", reads, **options)
    if suffix == "sam.bgz":
        pysam.tabix_compress(str(source), str(tmp_path / "bgz"), force=True)
        source = tmp_path / "bgz"
    data = source.read_bytes()
    if suffix == "sam.gz":
        data = gzip.compress(data)
    path = tmp_path / "cut"
    named = set()
    for size in {*range(len(data) - 45, len(data)), *range(100, len(data), len(data) // 30)}:
        path.write_bytes(data[:size])
        if suffix == "sam" and data[:size].endswith(b"\n"):
            continue  # a whole file of fewer reads
        seen, message = parse_until_fault(path)
        assert seen == reads[: len(seen)]
        assert message.startswith(f"{path} cannot be read")
        assert "\n" not in message
        if last := re.search(r"past read (\d+) \((\w+)\): ", message):
            assert int(last[1]) >= len(seen)
            assert last[2] == reads[int(last[1]) - 1][0]
            named.add(last[1])
    assert len(named) > 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", ["bam", "cram", "sam.gz"])
def test_flipped_byte_is_refused_or_changes_nothing(tmp_path, suffix, capfd):
    reads = draw(30, 50)
    data = write(tmp_path / f"x.{suffix.partition('.')[0]}", reads).read_bytes()
    data = gzip.compress(data) if suffix == "sam.gz" else data
    path, refused = tmp_path / "flipped", 0
    generator = np.random.default_rng(1)
    places = {*range(0, len(data), 7), *range(len(data) - 40, len(data))}
    for place in places:
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(flipped)
        seen, message = parse_until_fault(path)
        assert seen == (reads[: len(seen)] if message else reads)
        assert "\n" not in (message or "")
        refused += message is not None
    assert refused > 0.8 * len(places)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", ["bam", "cram", "sam"])
def test_files_joined_or_with_junk_behind_them_are_refused(tmp_path, suffix):
    data = write(tmp_path / f"x.{suffix}", draw(5)).read_bytes()
    for more in (data, b"x", bytes(100), b"\1x" * 50):
        (tmp_path / "more").write_bytes(data + more)
        with pytest.raises(InputError, match=r"cannot be read past read 5 \(r4\)"):
            parse(tmp_path / "more")


@pytest.mark.parametrize(
    "text",
    [
        "a\t4\t*\t0\t0\t*\t*\t0\t0\tACGT\tIII\n",
        "a\t4\t*\t\t0\t*\t*\t0\t0\tACGT\t*\n",
        "a\t-4\t*\t0\t0\t*\t*\t0\t0\tACGT\t*\n",
        "a\t0x4\t*\t0\t0\t*\t*\t0\t0\tACGT\t*\n",
        "a\t4\t*\t0\t0\t*\t*\t0\t0\tACGT\t*",
        "@a\t4\t*\t0\t0\t*\t*\t0\t0\tACGT\t*\n",
        "\n",
        "@HD\tVN:1.6\n",
        "@HD\tVN:1.6\nb\t4\t*\t0\t0\t*\t*\t0\t0\n",
    ],
)
def test_sam_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "x").write_text("@CO\tx\n" + READ.decode() + text)
    with pytest.raises(InputError, match=r"x cannot be read past read 1 \(r1\)"):
        parse(tmp_path / "x")


@pytest.mark.parametrize(
    "text", ["@HD\tVN:1.6\n@CO\tcut", "@HD\tVN:1.6\n@a\t4\t*\t0\t0\t*\t*\t0\t0\tACGT\t*\n"]
)
def test_sam_without_a_read_is_read_to_its_end(tmp_path, text):
    (tmp_path / "x").write_text(text)
    with pytest.raises(InputError, match="x cannot be read: "):
        read_records(tmp_path / "x", DNA, tmp_path, allow_empty=True)


def test_bam_in_plain_gzip_is_refused_with_the_reason(tmp_path):
    path = write(tmp_path / "x.bam", draw(5))
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())))
    with pytest.raises(InputError, match="plain gzip"):
        parse(path)


def test_without_pysam_the_install_line_is_said(tmp_path):
    paths = [str(write(tmp_path / f"x.{suffix}", draw(5))) for suffix in ("bam", "cram")]
    code = """if True:
        import sys
        sys.modules["pysam"] = None
        from pathlib import Path
        from virnucpro_pl.errors import InputError
        from virnucpro_pl.input.files import records_of
        for path in map(Path, sys.argv[1:]):
            try:
                list(records_of(path, path.parent))
            except InputError as error:
                print(error)
    """
    words = [sys.executable, "-c", code, *paths]
    ended = subprocess.run(words, capture_output=True, text=True, check=True)
    said = ended.stdout.splitlines()
    for path, line in zip(paths, said, strict=True):
        assert line.startswith(f"{path} is a {path.rpartition('.')[2].upper()} file")
        assert line.endswith("pip install 'virnucpro-pl[bam]'")


def test_htslib_speaks_as_before_afterwards(tmp_path):
    before = pysam.get_verbosity(), sys.stderr
    parse(write(tmp_path / "x.bam", draw(5)))
    (tmp_path / "cut").write_bytes((tmp_path / "x.bam").read_bytes()[:60])
    with pytest.raises(InputError):
        parse(tmp_path / "cut")
    assert (pysam.get_verbosity(), sys.stderr) == before


@pytest.mark.parametrize("ends", [1, 9, 12, 14, 20])
def test_sam_of_bgzip_is_told_whatever_its_first_block_holds(tmp_path, ends):
    text = b"@HD\tVN:1.6\nr0\t4\t*\t0\t0\t*\t*\t0\t0\tACGT\tIIII\n"
    path = tmp_path / "x.bam"
    path.write_bytes(bgzip(text[:ends], text[ends:]) + BGZF_END)
    assert parse_until_fault(path) == ([("r0", "ACGT")], None)


@pytest.mark.parametrize("blocks", [2, 3])
def test_sam_of_bgzip_cut_off_between_blocks_is_refused(tmp_path, blocks):
    lines = [f"r{i}\t4\t*\t0\t0\t*\t*\t0\t0\tACGT\tIIII\n".encode() for i in range(3)]
    path = tmp_path / "x.sam.gz"
    path.write_bytes(bgzip(*lines) + BGZF_END)
    assert parse_until_fault(path) == ([(f"r{i}", "ACGT") for i in range(3)], None)
    path.write_bytes(bgzip(*lines[:blocks]))
    seen, message = parse_until_fault(path)
    assert len(seen) == blocks
    assert "its last bytes are missing, so that it seems to be cut off" in message


def test_fastq_of_bgzip_without_its_end_is_read_with_a_warning(tmp_path, caplog):
    path = tmp_path / "x.fastq.gz"
    reads = [b"@a\nACGT\n+\nIIII\n", b"@b\nGGTT\n+\nIIII\n"]
    path.write_bytes(bgzip(*reads) + BGZF_END)
    assert parse_until_fault(path) == ([("a", "ACGT"), ("b", "GGTT")], None)
    assert not caplog.records
    path.write_bytes(bgzip(*reads))
    assert parse_until_fault(path) == ([("a", "ACGT"), ("b", "GGTT")], None)
    assert "lacks the empty block that bgzip writes at the end" in caplog.text
