import bz2
import gzip
import io
import lzma
import sys

import pytest

from virnucpro_pl.input.text import DAMAGED, open_text

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

COMPRESS = [bytes, gzip.compress, bz2.compress, lzma.compress, zstd.compress]


def read(data, size=-1):
    """All text, so many characters at a time."""
    with open_text(io.BufferedReader(io.BytesIO(data))) as text:
        return "".join(iter(lambda: text.read(size), ""))


@pytest.mark.parametrize("compress", COMPRESS)
@pytest.mark.parametrize("size", [1, 7, -1])
def test_text_read_whole_whatever_the_pieces(compress, size):
    data = bytes(range(256)) * 20
    expected = data.decode("latin-1").replace("\r\n", "\n").replace("\r", "\n")
    assert read(compress(data), size) == expected


@pytest.mark.parametrize("compress", COMPRESS[1:])
def test_text_cut_or_followed_by_junk_is_damaged(compress):
    data = compress(b">a\nMK\n")
    for damaged in (data[:-1], data + b"x", data + bytes(9) + b"x"):
        with pytest.raises(DAMAGED):
            read(damaged)
    assert read(data + bytes(9) + data) == ">a\nMK\n>a\nMK\n"


def test_text_zstd_frames_to_skip_and_long_windows_read():
    skipped = b"\x50\x2a\x4d\x18\x03\0\0\0abc"
    long = {zstd.CompressionParameter.window_log: 28, zstd.CompressionParameter.checksum_flag: 1}
    data = skipped + zstd.compress(b">a\n", options=long) + skipped + zstd.compress(b"MK\n")
    assert read(data) == ">a\nMK\n"
