import bz2
import gzip
import hashlib
import json
import lzma
import os
import pickle
import re
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from virnucpro_pl.errors import InputError, UsageError
from virnucpro_pl.input import records, validator
from virnucpro_pl.input.alphabets import DNA, PRINTABLE, PROTEIN
from virnucpro_pl.input.reader import read_records
from virnucpro_pl.input.records import RecordStore

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SUMMED = {zstd.CompressionParameter.checksum_flag: 1}
COMPRESS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda data: zstd.compress(data, options=SUMMED),
}
RESIDUES = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
fuzzed = settings(
    max_examples=2000,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture
def read(tmp_path):
    """Read bytes as a file: (id, sequence) of each record."""

    def call(data, alphabet=PROTEIN, name="input.fa"):
        path = tmp_path / name
        path.write_bytes(data)
        return contents(read_records(path, alphabet, tmp_path))

    return call


@pytest.fixture
def fault(read):
    """Read bytes that are refused: the message, without the folder's name."""

    def call(data, alphabet=PROTEIN, name="input.fa"):
        with pytest.raises(InputError) as caught:
            read(data, alphabet, name)
        return re.sub(r"^\S*/", "", str(caught.value))

    return call


def listed(message):
    """The lines of a message that each tell a fault, without what to do about it."""
    indented = [line[2:] for line in message.splitlines() if line.startswith("  ")]
    return [line.partition(": remove such records")[0] for line in indented]


def contents(store):
    rows = np.arange(len(store))
    return list(zip(store.ids(rows), store.sequences(rows), strict=True))


# What is read -------------------------------------------------------------------------------------


def test_records_fasta_of_several_lines_read_in_order(read):
    assert read(b">b first\nMK\nLL\n\n>a\nmkv") == [("b", b"MKLL"), ("a", b"MKV")]


def test_records_fastq_read_in_order(read):
    data = b"@a x\nMK\n+\n@>\n@b\nL\n+b\nI"
    assert read(data) == [("a", b"MK"), ("b", b"L")]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["unix", "dos", "mac"])
def test_records_fasta_line_ends_of_every_system_read(read, end):
    assert read(end.join([b">a x", b"MK", b"", b"L", b">b", b"V"])) == [("a", b"MKL"), ("b", b"V")]


def test_records_fastq_with_dos_line_ends_read(read):
    assert read(b"@a x\r\nMK\r\n+\r\nII\r\n") == [("a", b"MK")]


def test_records_blanks_within_and_around_lines_removed(read):
    assert read(b"\n \n >a\tx\n M K\tL \n\t\n >b\nV\n") == [("a", b"MKL"), ("b", b"V")]


def test_records_many_blank_lines_before_the_first_read(read):
    assert read(b"\n" * 200_000 + b">a\nMK") == [("a", b"MK")]


def test_records_final_stop_dropped_and_counted(read, caplog):
    assert read(b">a\nMK*\n>b\nM\n>c\nV\n*") == [("a", b"MK"), ("b", b"M"), ("c", b"V")]
    assert "dropped the final * of 2 record" in caplog.text


def test_records_unknown_residue_kept_and_counted(read, caplog):
    assert read(b">a\nMjKJ\n>b\nXBUZO") == [("a", b"MJKJ"), ("b", b"XBUZO")]
    assert "2 J are read as <unk>" in caplog.text


def test_records_dna_u_stored_as_t_and_counted(read, caplog, tmp_path):
    assert read(b">a\nacguN\n>b\nUCG", DNA) == [("a", b"ACGTN"), ("b", b"TCG")]
    assert "2 U (RNA) are read as T" in caplog.text
    assert RecordStore(tmp_path).counts == {"u_read_as_t": 2}


def test_records_printable_letters_kept_for_contigs(read):
    assert read(b">a\nacg-.*\n", PRINTABLE) == [("a", b"ACG-.*")]


@pytest.mark.parametrize(
    "name",
    ["a/b", "a|b|c", "a:b", "..", "../../etc", "-", "x" * 10_000, "c.215C>G", "café", "🧬"],
)
@pytest.mark.parametrize("form", [b">%b rest\nMK", b"@%b\trest\nMK\n+\nII"], ids=["fasta", "fastq"])
def test_records_odd_id_kept_whole(read, name, form):
    assert read(form % name.encode()) == [(name, b"MK")]


@pytest.mark.parametrize("text", [b"caf\xe9", b"\0\x01\x1b", b"\xff\xfe>x", "é-ü 🧬".encode()])
def test_records_description_of_any_bytes_ignored(read, text):
    assert read(b">a %b\nMK\n>b\t%b\nV" % (text, text)) == [("a", b"MK"), ("b", b"V")]
    assert read(b"@a %b\nMK\n+\nII\n" % text) == [("a", b"MK")]


@pytest.mark.parametrize("data", [b"> NODE_1 x\nMK\n", b">\t NODE_1\nMK", b"@ NODE_1\nMK\n+\nII\n"])
def test_records_blanks_before_an_id_skipped(read, data):
    assert read(data) == [("NODE_1", b"MK")]


def test_records_of_joined_files_with_byte_order_marks_read(read):
    assert read(b"\xef\xbb\xbf>a\nMK\n\xef\xbb\xbf>b\nV\n") == [("a", b"MK"), ("b", b"V")]


@pytest.mark.parametrize("header", ["r1 à", "r1 Å", " r1", "r1 \x85"])
def test_records_fastq_third_line_may_repeat_the_header(read, header):
    assert read(f"@{header}\nMK\n+{header}\nII\n".encode()) == [("r1", b"MK")]


@pytest.mark.parametrize("data", [b">a\nMK\n", b"\n\n>a\nMK\n", b"@a\nMK\n+\nII\n"])
@pytest.mark.parametrize("wrap", [bytes, gzip.compress], ids=["plain", "gz"])
def test_records_behind_a_byte_order_mark_read(read, data, wrap):
    assert read(wrap(b"\xef\xbb\xbf" + data)) == [("a", b"MK")]


@pytest.mark.parametrize("blank", [b"\n", b"\r\n\r\n", b" \t\n", b" "])
def test_records_blank_lines_of_fastq_ignored(read, blank):
    data = b"@a\nMK\n+\nII\n" + blank
    assert read(data) == [("a", b"MK")]
    assert read(data + b"\n@b\nV\n+\nI\n" + blank) == [("a", b"MK"), ("b", b"V")]


def test_records_without_letters_kept_where_allowed(tmp_path):
    for data in (b">a\n>b\nACG\n>c\n \n", b"@a\n\n+\n\n@b\nACG\n+\nIII\n@c\n\n+c\n\n"):
        (tmp_path / "x").write_bytes(data)
        store = read_records(tmp_path / "x", DNA, tmp_path, allow_empty_records=True)
        assert contents(store) == [("a", b""), ("b", b"ACG"), ("c", b"")]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_records_compressed_read_whatever_the_name(read, suffix):
    data = COMPRESS[suffix](b">a\nMK\n>b\nV")
    assert read(data, name=f"x.{suffix}") == [("a", b"MK"), ("b", b"V")]
    assert read(data, name="x.fa") == [("a", b"MK"), ("b", b"V")]
    assert read(b">a\nMK", name=f"x.{suffix}") == [("a", b"MK")]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_records_several_compressed_streams_and_padding_all_read(read, suffix):
    streams = [COMPRESS[suffix](part) for part in (b">a\nM", b"", b"K\n>b\n", b"V")]
    data = streams[0] + streams[1] + bytes(100_000) + streams[2] + streams[3] + bytes(8)
    assert read(data) == [("a", b"MK"), ("b", b"V")]


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("blank", [b"\n", b" \r\n" * 50_000], ids=["short", "long"])
def test_records_behind_a_blank_stream_are_all_read(read, suffix, blank):
    records = [(f"p{i}", b"M" * 55) for i in range(3000)]
    text = b"".join(b">%b\n%b\n" % (name.encode(), letters) for name, letters in records)
    assert read(COMPRESS[suffix](blank) + COMPRESS[suffix](text)) == records


def test_records_named_pipe_read(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(gzip.compress(b">a\nMK"),))
    writer.start()
    try:
        assert contents(read_records(pipe, PROTEIN, tmp_path)) == [("a", b"MK")]
    finally:
        writer.join(10)


@pytest.mark.parametrize(
    "data",
    [
        b">a\n" + b"MKLV" * 12_500_000,
        b"@a\n" + b"MKLV" * 12_500_000 + b"\n+\n" + b"I" * 50_000_000,
    ],
    ids=["fasta", "fastq"],
)
def test_records_one_line_of_50_mb_read_in_linear_time(read, data):
    began = time.monotonic()
    [(name, sequence)] = read(data)
    assert name == "a"
    assert sequence == b"MKLV" * 12_500_000
    assert time.monotonic() - began < 20


def test_records_many_lines_read_in_linear_time(read):
    began = time.monotonic()
    [(_, sequence)] = read(b">a\n" + b"M\n" * 1_000_000)
    assert len(sequence) == 1_000_000
    assert time.monotonic() - began < 20


# The store ----------------------------------------------------------------------------------------


def test_store_lengths_and_chosen_rows_as_read(tmp_path):
    path = tmp_path / "x.fa"
    path.write_bytes(b">a\nMKL\n>bb\nV\n>c\nMM\n")
    store = read_records(path, PROTEIN, tmp_path)
    assert store.lengths.tolist() == [3, 1, 2]
    names = ["a", "bb", "c"]
    for rows in ([], [0], [2, 0], [0, 1, 2], [2, 1, 0], [1, 1, 2, 0, 1], [2, 0, 1, 1, 2]):
        assert store.ids(np.array(rows, np.int64)) == [names[row] for row in rows]
    assert store.sequences(np.array([1, 1])) == [b"V", b"V"]
    assert store.sequences(np.array([], np.int64)) == []


def test_store_pickled_by_its_path(tmp_path):
    path = tmp_path / "x.fa"
    path.write_bytes(b">a\n" + b"M" * 100_000)
    store = read_records(path, PROTEIN, tmp_path)
    pickled = pickle.dumps(store)
    assert len(pickled) < 1000
    assert contents(pickle.loads(pickled)) == contents(store)
    assert contents(RecordStore(tmp_path)) == contents(store)


def test_store_hash_of_ids_and_sequences_only(tmp_path):
    def sha256(data):
        (tmp_path / "x").write_bytes(data)
        return read_records(tmp_path / "x", PROTEIN, tmp_path).sha256

    same = hashlib.sha256(b"\0ab\nMK\0c\nV").hexdigest()
    for data in (
        b">ab\nMK\n>c\nV",
        b">ab words\r\nm\r\nk\r\n>c\r\nV*",
        b"@ab\nMK\n+\nII\n@c\nV\n+\nI",
    ):
        assert sha256(data) == same
        assert sha256(gzip.compress(data)) == same
    for data in (b">a\nMK\n>c\nV", b">c\nV\n>ab\nMK", b">ab\nM\n>c\nKV", b">ab\nMK\n>c\nI"):
        assert sha256(data) != same


def test_store_is_the_same_bytes_in_every_process(tmp_path):
    (tmp_path / "x.fa").write_bytes(b">b\nMK\n>a\nV\n>c\nL\n")
    script = (
        "import sys; from pathlib import Path\n"
        "from virnucpro_pl.input.reader import read_records\n"
        "from virnucpro_pl.input.alphabets import PROTEIN\n"
        "read_records(Path('x.fa'), PROTEIN, Path(sys.argv[1]))"
    )
    found = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        words = [sys.executable, "-c", script, str(folder)]
        subprocess.run(words, cwd=tmp_path, env=environment, check=True, timeout=60)
        found.append({file.name: file.read_bytes() for file in folder.iterdir()})
    assert found[0] == found[1]
    assert set(json.loads(found[0]["store.json"])) == {"sha256", "counts", "files"}


def test_store_of_an_earlier_input_replaced(read):
    read(b">a\nMKLLLLL\n>b\nV\n")
    assert read(b">c\nM\n") == [("c", b"M")]


def test_store_without_short_records_replaced_by_one_with_all(tmp_path):
    path = tmp_path / "x.fa"
    path.write_bytes(b">a\nMKL\n>b\nV\n>c\nMM\n")
    whole = [("a", b"MKL"), ("b", b"V"), ("c", b"MM")]
    for least, kept in ((2, whole[::2]), (0, whole), (1, whole), (3, whole[:1])):
        store = read_records(path, PROTEIN, tmp_path, min_length=least)
        assert contents(store) == contents(pickle.loads(pickle.dumps(store))) == kept
        assert store.lengths.tolist() == [len(letters) for _, letters in kept]
        assert store.files == [(str(path), len(kept))]
        joined = b"".join(b"\0%b\n%b" % (name.encode(), letters) for name, letters in kept)
        assert store.sha256 == hashlib.sha256(joined).hexdigest()
        assert store.counts.get("shorter_than_min_length") == (3 - len(kept) if least else None)


def test_store_in_a_missing_folder_usage_error(tmp_path):
    (tmp_path / "x.fa").write_bytes(b">a\nMK")
    with pytest.raises(UsageError, match=r"x\.fa cannot be stored in .*nowhere"):
        read_records(tmp_path / "x.fa", PROTEIN, tmp_path / "nowhere")


def test_store_on_a_full_disk_usage_error(tmp_path):
    (tmp_path / "x.fa").write_bytes(b">a\nMK")
    for name in ("residues.bin", "ids.bin"):
        (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(UsageError, match="No space left"):
        read_records(tmp_path / "x.fa", PROTEIN, tmp_path)


@pytest.mark.parametrize(
    "data", [b">a\nMK", b">a\nM1", b"\xff", gzip.compress(b">a\nMK" * 99)[:-9]]
)
def test_files_closed_whatever_the_input(tmp_path, data):
    path = tmp_path / "x.fa"
    path.write_bytes(data)
    before = len(os.listdir("/proc/self/fd"))
    try:
        read_records(path, PROTEIN, tmp_path)
    except InputError:
        pass
    assert len(os.listdir("/proc/self/fd")) == before


# What is refused ----------------------------------------------------------------------------------


def test_missing_file_error_names_it(tmp_path):
    with pytest.raises(InputError, match=r"none\.fa cannot be read: No such file or directory$"):
        read_records(tmp_path / "none.fa", PROTEIN, tmp_path)


def test_folder_given_as_file_error_names_it(tmp_path):
    with pytest.raises(InputError, match=rf"^{tmp_path} cannot be read: Is a directory$"):
        read_records(tmp_path, PROTEIN, tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_unreadable_file_error_names_it(tmp_path):
    path = tmp_path / "x.fa"
    path.write_bytes(b">a\nMK")
    path.chmod(0)
    with pytest.raises(InputError, match=r"x\.fa cannot be read: Permission denied$"):
        read_records(path, PROTEIN, tmp_path)


@pytest.mark.parametrize("data", [b"", b"\n", b" \n\t\r\n\n", b"\n" * 200_000])
@pytest.mark.parametrize("wrap", [bytes, *COMPRESS.values()], ids=["plain", *COMPRESS])
def test_file_without_a_record_is_empty(fault, data, wrap):
    assert fault(wrap(data)).startswith("input.fa is empty: --data.allow_empty true takes")


@pytest.mark.parametrize(
    ("data", "line", "start"),
    [
        (b"MKV\n>a\nMK\n", 1, r"b'MKV\n'"),
        (b"\n #note\n>a\nMK\n", 2, r"b' #note\n'"),
        (b"\xff\xfe>\0a\0\n\0", 1, r"b'\xff\xfe>\x00a\x00\n'"),
        (b"\x89PNG\r\n\x1a\n", 1, r"b'\x89PNG\n'"),
        (b"\x1f\x8b"[:1], 1, r"b'\x1f'"),
        (b"BAM\1", 1, r"b'BAM\x01'"),
    ],
)
def test_file_that_starts_otherwise_is_no_fasta(fault, data, line, start):
    assert fault(data) == (
        "input.fa cannot be read: it is neither FASTA nor FASTQ, plain or gz, bz2, xz, zst "
        f"compressed: line {line} starts with {start} instead of '>' or '@'"
    )


@pytest.mark.parametrize("kind", COMPRESS)
def test_truncated_compressed_file_error_names_the_last_record(fault, kind):
    names = np.random.default_rng(0).permutation(3000)
    text = b"".join(b">r%d\n%b\n" % (i, b"MKV" * (i % 40 + 1)) for i in names)
    data = COMPRESS[kind](text)
    for cut in (len(data) // 2, len(data) - 1):
        message = fault(data[:cut])
        found = re.match(r"input\.fa cannot be read(?: past record (\d+) \(r(\d+)\))?: ", message)
        assert found, message
        assert re.search("ended before the end-of-stream|ends too early", message)
        if found[1]:
            assert names[int(found[1]) - 1] == int(found[2])
    assert found[1]


@pytest.mark.parametrize("kind", COMPRESS)
def test_junk_behind_compressed_data_is_an_error(fault, kind):
    data = COMPRESS[kind](b">a\nMK\n>b\nV\n")
    assert fault(data + b"junk").startswith("input.fa cannot be read")
    second = bytearray(COMPRESS[kind](b">c\nMK\n"))
    second[1] ^= 0xFF
    assert fault(data + bytes(second)).startswith("input.fa cannot be read")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b">a\nMK\n>caf\xe9 x\nMK", "2 (caf\ufffd): its id is not UTF-8: it holds the byte 0xe9"),
        ("@🧬\u00a0b\nMK\n+\nII\n".encode(), "1 (🧬\u00a0b): its id holds U+00A0, which cannot"),
        (b">a\rMK\r>b\0c\rMK", "2 (b\0c): its id holds U+0000, which cannot"),
        (b">a\nMK\n>\x1b[31m\nMK", "2 (\x1b[31m): its id holds U+001B, which cannot"),
        (b">a\nMK\n>b\r\nM\xa0K", "2 (b): the byte 0xa0 at position 2 is no residue"),
        (b">a\nMK\0", "1 (a): the byte 0x00 at position 3 is no residue"),
        (b">a\nMK\x0b\nL", "1 (a): the byte 0x0b at position 3 is no residue"),
        (b">a\nMK\n\x1c>b\nL", "1 (a): '>' at position 4 is no residue: another record"),
        (
            b">a\nMK\xef\xbb\xbf>b\nL",
            "1 (a): '>' at position 6 is no residue: another record begins",
        ),
        (b">a\nMK*>b x-1\nL", "1 (a): '>' at position 4 is no residue: another record"),
        (b"@a\nM\x1a\n+\nII\n", "1 (a): the byte 0x1a at position 2 is no residue"),
    ],
)
def test_byte_that_is_no_text_error_names_record_and_place(fault, data, what):
    start, line = fault(data).split("\n")
    assert start == "input.fa has 1 fault:"
    assert line.startswith(f"  record {what}")


def test_ids_that_are_no_text_and_repeated_ones_reported_together(fault):
    data = b">a\nM\n>\xff\nM\n>\xff\nM\n>b\0c\nM\n>c\nM\n>a\nM\n"
    assert [line.split(": ")[1] for line in listed(fault(data))] == [
        *("its id is not UTF-8", "its id is not UTF-8"),
        *("its id holds U+0000, which cannot be printed", "the id is that of record 1 already"),
    ]


@pytest.mark.parametrize("alphabet", [PROTEIN, DNA, PRINTABLE], ids=["protein", "dna", "original"])
@pytest.mark.parametrize("wrap", [bytes, *COMPRESS.values()], ids=["plain", *COMPRESS])
@pytest.mark.parametrize("width", [60, 10**6], ids=["lines", "one line"])
def test_record_joined_to_the_line_before_is_an_error(fault, alphabet, wrap, width):
    letters = b"ACGT" * 25 if alphabet is not PROTEIN else b"MKVL" * 25
    lines = b"\n".join(letters[i : i + width] for i in range(0, 100, width))
    first = b">A first\n" + lines  # without its last line end
    for joined in (first + b">B second\n", first + b" >B\r\n"):
        assert (
            f"record 1 (A): '>' at position 101 is no {alphabet.name}: another record begins"
        ) in fault(wrap(joined + lines + b"\n"), alphabet)


@pytest.mark.parametrize("line", [b"#LLL", b" \t#LLL", b"#"])
def test_comment_line_is_an_error_not_a_loss(fault, line):
    message = "input.fa cannot be read: line 4 begins with '#', which is no FASTA: remove the line"
    assert fault(b">a\n\nMK\n" + line + b"\nMK\n") == message
    assert fault(b">a\r\n\r\nMK\r\n" + line) == message
    assert fault(b">a\r\rMK\r" + line) == message


def test_number_sign_elsewhere_is_no_comment(read):
    assert read(b">#a #b\nMK\n") == [("#a", b"MK")]
    assert read(b"@a\nMK\n+\n##\n@b\nV\n+\n#\n") == [("a", b"MK"), ("b", b"V")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"@a\nMK\n+\nI\n", ": line 4 has 1 qualities for 2 letters"),
        (b"@a\nMK\nLL\n+\nIIII\n", ": line 3 should begin with '+'"),
        (b"@a\nMK\n+\nII\n@b\nMK\n", " behind record 1 (a): line 5: the file ends within"),
        (b"@a\nMK\n+\nII\n>b\nMK\n+\nII", " behind record 1 (a): line 5 should begin with '@'"),
        (b"@a\nMK\n+\nII@b\nMK\n+\nII", ": line 4 has 4 qualities for 2 letters"),
        (b"@a\nMK\n+b\nII\n", ": line 3 repeats another header than line 1's"),
        (b"@a\rMK\r+\r", ": line 1: the file ends within this record"),
        (b"@a\n\n+\n", ": line 1: the file ends within this record"),
        (b"@", ": line 1: the file ends within this record"),
    ],
)
def test_malformed_fastq_error_names_record_and_line(fault, data, message):
    assert fault(data).startswith(f"input.fa cannot be read{message}")


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b">", ["record 1: it has no id", "record 1: its sequence is empty"]),
        (b">\nMK\n", ["record 1: it has no id"]),
        (b"> \t\nMK\n", ["record 1: it has no id"]),
        (b">a\nMK\n>b\n>c\nMK\n", ["record 2 (b): its sequence is empty"]),
        (b">a\n \n\t\n", ["record 1 (a): its sequence is empty"]),
        (b">a\n*\n", ["record 1 (a): its sequence is empty"]),
        (b"@a\n\n+\n\n", ["record 1 (a): its sequence is empty"]),
        (b">a\nM K*L\n", ["record 1 (a): '*' at position 3 is no residue"]),
        (b">a\nMK**\n", ["record 1 (a): '*' at position 3 is no residue"]),
        (b">a\nM-K.\n", ["record 1 (a): '-' at position 2 is no residue"]),
        (b">a\nMK\n@b\nMK\n+\nII\n", ["record 1 (a): '@' at position 3 is no residue"]),
        (
            b">a\n1\n>b\n>c\nK2",
            [
                "record 1 (a): '1' at position 1 is no residue",
                "record 2 (b): its sequence is empty",
                "record 3 (c): '2' at position 2 is no residue",
            ],
        ),
        (
            b">a x\nMK\n>b\nMK\n>a y\nV\n>a\tz\nM",
            [
                "record 3 (a): the id is that of record 1 already",
                "record 4 (a): the id is that of record 1 already",
            ],
        ),
    ],
)
def test_bad_records_all_named(fault, data, lines):
    count = f"{len(lines)} fault{'s' * (len(lines) > 1)}"
    message = fault(data)
    assert message.startswith(f"input.fa has {count}:\n")
    assert listed(message) == lines


def test_empty_record_error_says_how_to_go_on(fault):
    assert fault(b">a\n>b\nMK\n").endswith(
        "record 1 (a): its sequence is empty: remove such records with --data.min_length 1"
    )


def test_dna_with_other_letters_error_names_them(fault):
    assert "record 1 (a): 'E' at position 2 is no base" in fault(b">a\nAECCCCCCCC", DNA)
    assert "record 1 (a): '-' at position 2 is no base" in fault(b">a\nA----", DNA)


# The molecule -------------------------------------------------------------------------------------

PROTEINS = b">a\nMKVLAAGIVGLPEEQF\n>b\nWTERSCHLIFQN\n"


@pytest.mark.parametrize("alphabet", [DNA, PRINTABLE], ids=["iupac", "original"])
def test_proteins_for_dna_refused_in_one_sentence_naming_the_config(fault, alphabet):
    message = fault(PROTEINS, alphabet)
    assert "\n" not in message
    assert "input.fa holds proteins, it seems, not DNA: 46 % of its letters are no bases" in message
    assert "--config esm2.yaml" in message


@pytest.mark.parametrize(
    ("letters", "refused"), [(b"E" + b"A" * 9, False), (b"EE" + b"A" * 17, True)]
)
def test_proteins_begin_above_a_tenth_of_letters_that_are_no_bases(fault, letters, refused):
    message = fault(b">a\n" + letters + b"-.*12" * 9, DNA)  # gaps and digits are no letters
    assert ("holds proteins" in message) == refused


DNA_LIKE = b"ACGUN" * 6


def test_dna_for_proteins_refused_in_one_sentence_naming_the_configs(fault):
    message = fault(b">a\n%b\n>b\n%bt\n>c\n%bK\n" % (DNA_LIKE, DNA_LIKE, DNA_LIKE), PROTEIN)
    assert "\n" not in message
    assert "input.fa holds DNA, it seems, not protein: 2 of 3 records of 30 letters and" in message
    assert "--config virnucpro.yaml" in message
    assert "--config dnabert_s.yaml" in message


def test_few_dna_like_records_among_proteins_counted_with_a_warning(read, caplog, tmp_path):
    short = b"".join(b">s%d\nGATTACA\n" % i for i in range(9))  # too short to tell
    read(short + b">a\n%b\n>b\n%bK\n" % (DNA_LIKE, DNA_LIKE))
    assert "1 of 2 records of 30 letters and more may be DNA" in caplog.text
    assert RecordStore(tmp_path).counts["dna_like_records"] == 1


def test_molecule_taken_as_it_is_where_asked(tmp_path):
    for name, data, alphabet in (
        ("dna", b">a\n" + DNA_LIKE, PROTEIN),
        ("protein", PROTEINS, PRINTABLE),
    ):
        (tmp_path / name).write_bytes(data)
        assert len(read_records(tmp_path / name, alphabet, tmp_path, check_molecule=False))
    with pytest.raises(InputError, match="2 faults"):
        read_records(tmp_path / "protein", DNA, tmp_path, check_molecule=False)


# Faults of many records ---------------------------------------------------------------------------


def test_faults_of_every_kind_in_order_of_records(fault):
    message = fault(b">a\n1\n>\nMK\n>a\n\n>b\n..\n")
    assert [line.split(":")[0] for line in listed(message)] == [
        "record 1 (a)", "record 2", "record 3 (a)", "record 3 (a)", "record 4 (b)",
    ]  # fmt: skip


def test_faults_beyond_twenty_counted(fault):
    data = b"".join(b">r%d\nM1\n" % i for i in range(5000))
    *lines, advice = fault(data + b">r0\nMK\n").splitlines()
    assert lines[0] == "input.fa has 5001 faults:"
    assert [line.split()[1] for line in lines[1:-1]] == [str(i) for i in range(1, 21)]
    assert lines[-1] == "  and 4981 more"
    assert "seqkit rename" in advice


def test_fault_of_a_record_with_a_long_id_is_short(fault):
    message = fault(b">%b\nM1\n>%b\nM\n" % (b"x" * 10_000, b"x" * 10_000))
    assert len(message) < 700
    assert f"record 2 ({'x' * 60}...): the id is that of record 1 already" in message


def test_bad_records_of_many_blocks_keep_their_numbers(fault, read, monkeypatch):
    monkeypatch.setattr(validator, "_BLOCK", 250)
    records = [b">r%d\nMK\n" % i for i in range(50)]
    assert read(b"".join(records)) == [(f"r{i}", b"MK") for i in range(50)]
    records[7], records[30], records[49] = b">r7\nM7\n", b">r30\n", b">r3\nM\n"
    assert listed(fault(b"".join(records))) == [
        "record 8 (r7): '7' at position 2 is no residue",
        "record 31 (r30): its sequence is empty",
        "record 50 (r3): the id is that of record 4 already",
    ]


def test_duplicates_are_told_by_id_not_by_hash(fault, read, monkeypatch):
    monkeypatch.setattr(records, "hash", lambda _: 7, raising=False)
    assert len(read(b">a\nM\n>b\nM\n>A\nM\n")) == 3
    assert "1 fault:\n  record 4 (b): the id is that of record 2" in fault(
        b">a\nM\n>b\nM\n>c\nM\n>b\nM\n"
    )


# Fuzz ---------------------------------------------------------------------------------------------


def parse(data):
    """Records of well-formed FASTA or FASTQ, or None: a parser that shares nothing with ours."""
    text = data.removeprefix(b"\xef\xbb\xbf").decode("latin-1")
    lines = re.split("\r\n|\r|\n", text)
    records = parse_fastq(lines) if text.lstrip(" \t\r\n").startswith("@") else parse_fasta(lines)
    if not records:
        return None
    try:
        records = [
            (
                re.split("[ \t]", header.lstrip(" \t"))[0].encode("latin-1").decode(),
                re.sub("[ \t]", "", letters).upper().removesuffix("*"),
            )
            for header, letters in records
        ]
    except UnicodeDecodeError:
        return None
    good = all(n and n.isprintable() and s and set(s) <= set(RESIDUES) for n, s in records)
    distinct = len({name for name, _ in records}) == len(records)
    dna = sum(len(s) >= 30 and set(s) <= set("ACGTUN") for _, s in records)
    if 2 * dna > sum(len(s) >= 30 for _, s in records):
        return None
    return [(n, letters.encode()) for n, letters in records] if good and distinct else None


def parse_fasta(lines):
    records = []
    for line in lines:
        line = line.strip(" \t")
        if line.removeprefix("\xef\xbb\xbf").startswith(">"):
            records.append([line.removeprefix("\xef\xbb\xbf")[1:], ""])
        elif line.startswith("#") or (line and not records):
            return None
        elif line:
            records[-1][1] += line
    return records


def parse_fastq(lines):
    if lines[-1] == "":
        del lines[-1]
    records = []
    while lines:
        if lines[0].strip(" \t") == "":
            del lines[0]
            continue
        if len(lines) < 4:
            return None
        header, letters, plus, quality = lines[:4]
        del lines[:4]
        header = header.strip(" \t")
        if header[:1] != "@" or plus[:1] != "+":
            return None
        if plus[1:].strip(" \t") not in ("", header[1:].strip(" \t")):
            return None
        if len(letters) != len(quality):
            return None
        records.append((header[1:], letters))
    return records


def check(read, data):
    expected = parse(data)
    if expected is None:
        with pytest.raises(InputError, match=r"input\.fa"):
            read(data)
    else:
        assert read(data) == expected


names = st.text("abcXYZ0189/|:._-#>@", min_size=1, max_size=5)
ends = st.sampled_from(["\n", "\r\n", "\r", "\n\n", " \n", "\t\r\n"])
letters = st.text("ACDEFGHIKLMNPQRSTVWYacdjxbuzoJ ", min_size=1, max_size=30)
fasta_record = st.tuples(
    names,
    st.sampled_from(["", " words", "\t>x #y"]),
    ends,
    st.lists(letters, min_size=1, max_size=3),
    ends,
).map(lambda r: f">{r[0]}{r[1]}{r[2]}{r[4].join(r[3])}{r[4]}")
fastq_record = st.tuples(names, letters, st.booleans(), st.sampled_from(["\n", "\r\n"])).map(
    lambda r: r[3].join([f"@{r[0]}", r[1], "+" + r[0] * r[2], "@" * len(r[1])]) + r[3]
)
whole = st.one_of(st.lists(fasta_record, max_size=4), st.lists(fastq_record, max_size=4)).map(
    "".join
)
spoilt = st.tuples(
    whole.map(str.encode), st.integers(0, 99), st.integers(0, 3), st.binary(max_size=2)
).map(lambda c: c[0][: c[1]] + c[3] + c[0][c[1] + c[2] :])
PIECES = (
    *(b">", b"@", b"+", b"\n", b"\r", b"\r\n", b" ", b"\t", b"#", b"*", b"a", b"J", b"MK", b"1"),
    *(b"\n>", b"\n+\n", b">a\nMK\n", b">b\nV\n", b"@c\nMK\n+\nII\n", b".", b"-", b"/|:.."),
    *(b"\0", b"\x0b", b"\xe9", b"\xef\xbb\xbf", "🧬".encode(), b"\x1f\x8b", b"BZh", b"x" * 10_000),
)
fragments = st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join)


@pytest.mark.slow
@fuzzed
@given(data=st.one_of(whole.map(str.encode), spoilt, fragments, st.binary(max_size=40)))
def test_any_bytes_read_whole_and_right_or_refused(read, data):
    check(read, data)


@pytest.mark.slow
@settings(fuzzed, max_examples=400)
@given(
    kind=st.sampled_from(sorted(COMPRESS)),
    cut=st.integers(0, 10_000),
    flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 255)), max_size=2),
    junk=st.sampled_from([b"", b"", b"\0", b"junk", b"\x1f\x8b"]),
    truncate=st.booleans(),
)
def test_damaged_compression_read_whole_and_right_or_refused(
    read, kind, cut, flips, junk, truncate
):
    generator = np.random.default_rng(0)
    text = b"".join(
        b">r%d\n%b\n" % (i, bytes(generator.choice(list(b"ACDEFGHIKLMNPQRSTVWY"), 30).tolist()))
        for i in range(20)
    )
    half = text.index(b">r10\n")
    data = bytearray(COMPRESS[kind](text[:half]) + COMPRESS[kind](text[half:]))
    for place, mask in flips:
        data[place % len(data)] ^= mask
    if truncate:
        del data[cut % len(data) :]
    try:
        found = read(bytes(data) + junk)
    except InputError:
        return
    assert found == parse(text)
