import bz2
import gzip
import io
import lzma
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virnucpro_pl.errors import InputError
from virnucpro_pl.sequences.text import DAMAGED, SequenceText

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

COMPRESS = [bytes, gzip.compress, bz2.compress, lzma.compress, zstd.compress]


def read(data, size=1 << 16):
    text = SequenceText(Path("x.fa"), io.BufferedReader(io.BytesIO(data)))
    found, buffer = b"", bytearray(size)
    while count := text.readinto(buffer):
        found += buffer[:count]
    return found, text


@pytest.mark.parametrize("compress", COMPRESS)
@pytest.mark.parametrize("size", [1, 7, 1 << 16])
def test_text_read_whole_whatever_the_buffer(compress, size):
    data = b"\n >a b\r\nMK #\n>c\tx\rV" * 20
    found, text = read(compress(data), size)
    assert found == data
    assert text.first == b">"


@pytest.mark.parametrize(("data", "first"), [(b"", b""), (b" \n", b""), (b"\n@a", b"@")])
def test_text_first_character_told(data, first):
    assert read(data)[1].first == first


@pytest.mark.parametrize("size", [1, 2, 3, 1 << 16])
@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b">a\nMK\n#", 3),
        (b">a\r\nMK\r\n \t#x", 3),
        (b">a\rMK\r#", 3),
        (b">a#\n #", 2),
        (b"\n\n>a\n\n\n#x\n#y", 6),
    ],
)
def test_text_comment_line_told_whatever_the_buffer(data, line, size):
    with pytest.raises(InputError, match=f"line {line} begins with '#'"):
        read(data, size)


@pytest.mark.parametrize("data", [b">a #\nM#K\n", b"@a\nMK\n+\n##\n", b"@a\nMK\n+\n#\n\n #"])
def test_text_number_sign_within_a_line_or_in_fastq_kept(data):
    assert read(data, 1)[0] == data


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(
    lines=st.lists(st.sampled_from([b"MK", b"", b" ", b"\t#", b"#", b"M#", b"\0", b"K\xff"])),
    end=st.sampled_from([b"\n", b"\r", b"\r\n"]),
    size=st.integers(1, 9),
)
def test_text_line_that_is_refused_told_in_any_pieces(lines, end, size):
    lines = [b">a", *lines]
    data = end.join(lines)
    comments = {i for i, line in enumerate(lines, 1) if re.match(rb"[ \t]*#", line)}
    strange = {i for i, line in enumerate(lines, 1) if re.search(rb"[\0\xff]", line)}
    if not comments | strange:
        assert read(data, size)[0] == data
        return
    with pytest.raises(InputError) as caught:
        read(data, size)
    line, verb = re.search(r"x\.fa: line (\d+) (holds|begins)", str(caught.value)).groups()
    assert int(line) in (strange if verb == "holds" else comments)


@pytest.mark.parametrize("compress", COMPRESS[1:])
def test_text_cut_or_followed_by_junk_is_damaged(compress):
    data = compress(b">a\nMK\n")
    for damaged in (data[:-1], data + b"x", data + bytes(9) + b"x"):
        with pytest.raises(DAMAGED):
            read(damaged)
    assert read(data + bytes(9) + data)[0] == b">a\nMK\n>a\nMK\n"


def test_text_zstd_frames_to_skip_and_long_windows_read():
    skipped = b"\x50\x2a\x4d\x18\x03\0\0\0abc"
    long = {zstd.CompressionParameter.window_log: 28, zstd.CompressionParameter.checksum_flag: 1}
    data = skipped + zstd.compress(b">a\n", options=long) + skipped + zstd.compress(b"MK\n")
    assert read(data)[0] == b">a\nMK\n"
