import h5py
import numpy as np
import pytest

from virnucpro_pl.contracts import Inputs
from virnucpro_pl.output.merge import Merge
from virnucpro_pl.output.part_file import IncompleteError, Part, write_part

IDS = np.array([f"id/{i} ü" for i in range(7)])


def part(*rows, ids=None):
    rows = np.array(rows, np.int64)
    vectors = (rows[:, None] * 10 + np.arange(3)).astype(np.float32)
    columns = {"embeddings": vectors, "outcome": np.zeros(len(rows), np.uint8)}
    return Part(rows, list(IDS[rows] if ids is None else ids), columns)


def write(folder, *parts):
    paths = [folder / f"part-{i}.h5" for i in range(len(parts))]
    for path, content in zip(paths, parts, strict=True):
        write_part(path, content)
    return paths


def begin(folder):
    return Merge(
        folder / "out.h5",
        folder / "half-made.h5",
        column="embeddings",
        count=7,
        ids=lambda rows: IDS[rows].tolist(),
        width=3,
    )


def finish(merge, **options):
    attributes = {"model": "m", "absent": None}
    return merge.publish(lengths=np.arange(1, 8), attributes=attributes, **options)


def merged(folder, paths, **options):
    merge = begin(folder)
    try:
        merge.take(paths)
        finish(merge, **options)
    finally:
        merge.discard()
    return folder / "out.h5"


def test_merge_scattered_parts_are_in_input_order(tmp_path):
    paths = write(tmp_path, part(6, 0, 1), part(3, 2), part(5, 4))
    with h5py.File(merged(tmp_path, paths)) as file:
        assert file["embeddings"].dtype == np.float32
        assert file["embeddings"].chunks is not None
        assert file["embeddings"][:, 0].tolist() == [0, 10, 20, 30, 40, 50, 60]
        assert file["sequence_ids"].asstr()[:].tolist() == IDS.tolist()
        assert file["lengths"][:].tolist() == [1, 2, 3, 4, 5, 6, 7]
        assert file["lengths"].dtype == np.int32
        assert file.attrs["complete"]
        assert file.attrs["format"] == "virnucpro-pl embeddings"
        assert file.attrs["model"] == file.attrs["model_name"] == "m"
        assert "absent" not in file.attrs
        assert "input" not in file


def test_merge_truncated_records_are_marked(tmp_path):
    with h5py.File(merged(tmp_path, write(tmp_path, part(*range(7))), max_length=5)) as file:
        assert file["lengths"][:].tolist() == [1, 2, 3, 4, 5, 5, 5]
        assert file["lengths"].attrs["max_length"] == 5
        assert file["lengths"].attrs["truncated_records"] == 2


def test_merge_of_several_files_says_which_of_them_each_row_is_of(tmp_path):
    inputs = Inputs(["a.faa", "ü.faa"], np.array([0, 0, 1, 1, 1, 1, 1], np.int32))
    with h5py.File(merged(tmp_path, write(tmp_path, part(*range(7))), inputs=inputs)) as file:
        assert file["inputs"].asstr()[:].tolist() == inputs.names
        assert file["input"].dtype == np.int32
        assert file["input"][:].tolist() == inputs.file.tolist()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([part(0, 1, 2), part(4, 6)], "2 of 7 records have no result: id/3 ü, id/5 ü"),
        ([], "7 of 7 records"),
        ([part(*range(7)), part(2)], "another part holds already"),
        ([part(0, 0, 1, 2, 3, 4, 5, 6)], "another part holds already"),
        ([part(*range(6)), part(6, ids=["other"])], "ids that are not those of the input"),
        ([part(*range(7), ids=IDS[::-1])], "ids that are not those of the input"),
        ([Part(np.array([7]), ["x"], part(0).columns)], "does not have"),
        ([Part(np.array([-1]), ["x"], part(0).columns)], "does not have"),
    ],
)
def test_merge_rows_not_exactly_once_raises_and_publishes_nothing(tmp_path, parts, message):
    with pytest.raises(IncompleteError, match=message):
        merged(tmp_path, write(tmp_path, *parts))
    assert not (tmp_path / "out.h5").exists()
    assert not (tmp_path / "half-made.h5").exists()


def test_merge_damaged_part_raises(tmp_path):
    [path] = write(tmp_path, part(*range(7)))
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(IncompleteError, match="damaged after"):
        merged(tmp_path, [path])


def vectors(path):
    with h5py.File(path) as file:
        assert file.attrs["complete"]
        return file["embeddings"][()]


@pytest.mark.parametrize("block", [1, 2, 5, 7, 100])
def test_ids_written_in_blocks_between_parts_are_all_there(tmp_path, monkeypatch, block):
    monkeypatch.setattr("virnucpro_pl.output.merge._ID_BLOCK", block)
    merge = begin(tmp_path)
    paths = write(tmp_path, part(5, 6), part(*range(5)))
    for count, _ in enumerate(paths, start=1):
        merge.take(paths, most=1)
        assert merge._named == min(count * block, 7)
    finish(merge)
    merge.discard()
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["sequence_ids"].asstr()[:].tolist() == IDS.tolist()


def test_parts_taken_as_they_come_make_the_same_file(tmp_path):
    (tmp_path / "at once").mkdir()
    (tmp_path / "one by one").mkdir()
    parts = [part(5, 6), part(0, 2), part(1, 3, 4)]
    expected = vectors(merged(tmp_path / "at once", write(tmp_path / "at once", *parts)))
    merge = begin(tmp_path / "one by one")
    paths = write(tmp_path / "one by one", *parts)
    merge.take(paths[:1])
    merge.take(paths, most=1)
    merge.take(paths[:2])  # nothing new
    with pytest.raises(IncompleteError, match="3 of 7 records have no result"):
        finish(merge)
    assert not merge.path.exists()
    merge.take(paths)
    assert finish(merge) == 0
    merge.discard()
    np.testing.assert_array_equal(vectors(merge.path), expected)
    assert sorted(merge.path.parent.iterdir()) == [merge.path, *paths]


def test_discarded_merge_leaves_nothing(tmp_path):
    merge = begin(tmp_path)
    merge.take(write(tmp_path, part(0, 1)))
    assert len(list(tmp_path.iterdir())) == 2
    merge.discard()
    merge.discard()
    assert [path.name for path in tmp_path.iterdir()] == ["part-0.h5"]


def test_full_disk_raises_at_once_and_the_file_is_not_published(tmp_path):
    merge = begin(tmp_path)
    merge._rows._disk.error = OSError(28, "No space left on device")
    with pytest.raises(OSError, match="No space left"):
        merge.take(write(tmp_path, part(*range(7))))
    with pytest.raises(OSError, match="No space left"):
        finish(merge)
    merge.discard()
    assert not merge.path.exists()
