"""Tables, read a block of lines at a time: every cell as it is, and no line that is too short."""

import pytest

from virnucpro_pl.errors import InputError
from virnucpro_pl.plot import tables
from virnucpro_pl.plot.tables import parse, read_table

IDS = ["NA", "nan", "007", "1e5", '"a', "#b", "", " c "]


def write(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def everything(header):
    return list(range(len(header)))


@pytest.mark.parametrize("size", [1, 3, 4, 8, 100])
def test_cells_are_the_texts_that_they_are_in_blocks_of_any_size(tmp_path, monkeypatch, size):
    monkeypatch.setattr(tables, "_LINES", size)
    path = write(tmp_path / "t.tsv", "id\tx", *(f"{name}\t{i}" for i, name in enumerate(IDS)))
    blocks = list(read_table(path, lambda header: [header.index("x"), 0]))
    assert [tuple(block.columns) for block in blocks] == [("x", "id")] * len(blocks)
    assert [name for block in blocks for name in block["id"]] == IDS
    assert [line for block in blocks for line in block.index] == list(range(2, 10))
    assert blocks[-1]["x"].tolist() == [] or parse(path, blocks[-1]["x"], int)[-1] == 7


@pytest.mark.parametrize("lines", [["id\tx"], ["id\tx", "a\t"]])
def test_there_is_one_block_at_least(tmp_path, lines):
    [block] = read_table(write(tmp_path / "t.tsv", *lines), everything)
    assert block.values.tolist() == [["a", ""]] * (len(lines) - 1)


@pytest.mark.parametrize(
    ("line", "count"), [("b", 1), ("", 1), ("b\t1\t2", 3), ("b\t1\t2\t3\t4", 5)]
)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_line_of_another_width_is_named(tmp_path, monkeypatch, line, count, size):
    monkeypatch.setattr(tables, "_LINES", size)
    path = write(tmp_path / "t.tsv", "id\tx", "a\t1", "a\t2", line, "c\t3")
    with pytest.raises(InputError, match=rf"t\.tsv, line 4: {count} columns, not 2"):
        list(read_table(path, everything))
