"""Numbers on disk: what is written is there, or an error is raised."""

import os
from pathlib import Path

import numpy as np
import pytest

from virnucpro_pl.input.records import map_array, write_array


@pytest.mark.parametrize("count", [0, 1, 1000, 100_000])
def test_written_numbers_are_read_back(tmp_path, count):
    values = np.arange(2 * count)[::2]
    write_array(tmp_path / "a", values)
    np.testing.assert_array_equal(map_array(tmp_path / "a", np.int64), values)
    with (tmp_path / "b").open("wb") as file:
        write_array(file, values)
        write_array(file, values)
    np.testing.assert_array_equal(map_array(tmp_path / "b", np.int64), [*values, *values])


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a device that is full")
@pytest.mark.parametrize("count", [1, 100_000])
def test_full_disk_is_an_error_however_few_numbers_are_lost(count):
    with pytest.raises(OSError, match="No space left"):
        write_array(Path("/dev/full"), np.arange(count))
    with pytest.raises(OSError, match="No space left"), Path("/dev/full").open("wb") as file:
        write_array(file, np.arange(count))


def test_numpy_writes_no_file_by_itself():
    package = Path(__file__).parents[2] / "virnucpro_pl"
    assert not [path for path in package.rglob("*.py") if ".tofile(" in path.read_text()]
