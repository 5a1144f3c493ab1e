import errno
import resource
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest

from virnucpro_pl.output.quiet_file import QuietFile


@contextmanager
def largest_file(size):
    """Let no file of this process grow beyond a size; Linux then writes what still fits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_h5py_writes_and_reads_back(tmp_path):
    values = np.arange(300_000.0)
    with QuietFile(tmp_path / "a.h5") as disk, h5py.File(disk, "w") as file:
        file["a"] = values
        np.testing.assert_array_equal(file["a"][:], values)
        file["a"][7] = -1
    assert disk.error is None
    with h5py.File(tmp_path / "a.h5") as file:
        np.testing.assert_array_equal(file["a"][:9], [*range(7), -1, 8])
        assert len(file["a"]) == len(values)


def test_file_that_is_there_is_emptied(tmp_path):
    (tmp_path / "a").write_text("long before")
    with QuietFile(tmp_path / "a") as disk:
        disk.write(b"now")
    assert (tmp_path / "a").read_text() == "now"


def test_write_that_fits_in_part_is_an_error(tmp_path):
    with QuietFile(tmp_path / "a") as disk:
        with largest_file(10):
            written = disk.write(b"123456"), disk.error, disk.write(b"123456")
        assert written == (6, None, 6)
        assert disk.error.errno == errno.EFBIG
    assert (tmp_path / "a").read_bytes() == b"1234561234"


def test_nothing_is_written_after_an_error(tmp_path):
    with QuietFile(tmp_path / "a") as disk:
        with largest_file(4):
            disk.write(b"123456")
        first = disk.error
        assert disk.write(b"78") == 2
        assert disk.truncate(50) == 50
        assert disk.error is first
    assert (tmp_path / "a").read_bytes() == b"1234"


def test_reads_beyond_the_end_are_zeros(tmp_path):
    buffer = bytearray(b"xxxx")
    with QuietFile(tmp_path / "a") as disk:
        disk.write(b"ab")
        disk.seek(0)
        assert disk.readinto(buffer) == 4
    assert buffer == b"ab\0\0"
    assert disk.error is None


def test_read_that_fails_gives_zeros_and_the_error():
    buffer = bytearray(b"xxxx")
    with QuietFile(Path("/proc/self/mem")) as disk:  # nothing is mapped at its beginning
        assert disk.readinto(buffer) == 4
    assert buffer == bytes(4)
    assert disk.error.errno == errno.EIO


def test_path_that_cannot_be_created_raises(tmp_path):
    with pytest.raises(FileNotFoundError):
        QuietFile(tmp_path / "absent" / "a")


def test_full_disk_is_hidden_from_hdf5_which_ends_in_peace(start):
    script = (
        "import errno, h5py, numpy as np\n"
        "from pathlib import Path\n"
        "from virnucpro_pl.output.quiet_file import QuietFile\n"
        "with QuietFile(Path('/dev/full')) as disk, h5py.File(disk, 'w') as file:\n"
        "    for name in 'abc':\n"
        "        file[name] = np.zeros(1_000_000)\n"
        "    file.attrs['x'] = float(file['b'][5])\n"
        "assert disk.error.errno == errno.ENOSPC\n"
    )
    assert start(launcher=("-c", script)).wait(60) == (0, "")
