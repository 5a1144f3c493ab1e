import zlib

import h5py
import numpy as np
import pytest

from virnucpro_pl.output.atomic_files import published, write_json
from virnucpro_pl.output.part_file import Part, read_part, runs, write_part

PART = Part(
    np.array([5, 0, 3]),
    ["id/5 ü", "id/0 ü", "id/3 ü"],
    {
        "embeddings": np.arange(12, dtype=np.float32).reshape(3, 4),
        "outcome": np.zeros(3, np.uint8),
    },
)


@pytest.fixture
def path(tmp_path):
    """File of that part."""
    write_part(tmp_path / "part-0.h5", PART)
    return tmp_path / "part-0.h5"


def test_write_then_read_part_is_the_same(path):
    again = read_part(path)
    assert again.rows.tolist() == [5, 0, 3]
    assert again.ids == ["id/5 ü", "id/0 ü", "id/3 ü"]
    np.testing.assert_array_equal(again.columns["embeddings"], PART.columns["embeddings"])
    assert list(path.parent.iterdir()) == [path]


def test_read_part_of_an_earlier_version(path, tmp_path):
    old = PART
    ids = b"id/5 \xc3\xbc\0id/0 \xc3\xbc\0id/3 \xc3\xbc"
    checksum = zlib.crc32(ids, zlib.crc32(old.rows.tobytes()))
    with h5py.File(tmp_path / "old.h5", "w", libver="earliest") as file:
        file["rows"], file["ids"] = old.rows, np.frombuffer(ids, np.uint8)
        for name, column in sorted(old.columns.items()):
            file[f"columns/{name}"] = column
            checksum = zlib.crc32(column.tobytes(), zlib.crc32(name.encode(), checksum))
        file.attrs["checksum"] = checksum
    again = read_part(tmp_path / "old.h5")
    assert (again.rows.tolist(), again.ids) == ([5, 0, 3], list(old.ids))
    np.testing.assert_array_equal(again.columns["embeddings"], old.columns["embeddings"])
    with h5py.File(tmp_path / "old.h5") as file, h5py.File(path) as new:
        for name in ("rows", "ids", "columns/embeddings", "columns/outcome"):
            assert (file[name].dtype, file[name].shape) == (new[name].dtype, new[name].shape)
            assert file[name].chunks is new[name].chunks is None
        assert file.attrs["checksum"] == new.attrs["checksum"]


def test_write_part_on_a_full_disk_raises_wherever_and_the_process_ends_in_peace(start):
    script = (
        "import errno, resource, numpy as np\n"
        "from pathlib import Path\n"
        "from virnucpro_pl.output.part_file import Part, read_part, write_part\n"
        "columns = {'embeddings': np.ones((300, 5), np.float32)}\n"
        "part = Part(np.arange(300), [str(i) for i in range(300)], columns)\n"
        "write_part(Path('whole'), part)\n"
        "size = Path('whole').stat().st_size\n"
        "for limit in range(0, size, 97):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))\n"
        "    try:\n"
        "        write_part(Path('part'), part)\n"
        "        raise SystemExit(f'{limit} is enough')\n"
        "    except OSError as error:\n"
        "        assert error.errno == errno.EFBIG\n"
        "    assert not list(Path().glob('*part'))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))\n"
        "write_part(Path('part'), part)\n"
        "assert read_part(Path('part')).rows.tolist() == list(range(300))\n"
    )
    assert start(launcher=("-c", script)).wait(60) == (0, "")


def test_read_part_any_flipped_byte_is_noticed_or_harmless(path):
    data, whole = path.read_bytes(), read_part(path)
    damaged = 0
    for at in range(0, len(data), 17):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        again = read_part(path)
        damaged += again is None
        if again is not None:  # a byte that HDF5 does not use
            assert again.rows.tolist() == whole.rows.tolist()
            assert again.ids == whole.ids
            np.testing.assert_array_equal(*(p.columns["embeddings"] for p in (again, whole)))
    assert damaged > 5


@pytest.mark.parametrize("share", [0, 0.3, 0.9, 0.999])
def test_read_part_truncated_is_none_with_log(path, caplog, share):
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert read_part(path) is None
    assert "part-0.h5 is damaged" in caplog.text


def test_runs_are_maximal():
    assert runs(np.array([4, 5, 6, 2, 9, 10])) == [slice(0, 3), slice(3, 4), slice(4, 6)]


def test_published_error_leaves_old_file_and_no_temporary(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="stop"), published(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise ValueError("stop")
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
