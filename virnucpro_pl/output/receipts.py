"""Receipts: what stays of a part whose rows are safe in the output that is being made.

A receipt is a part file without vectors, but with a checksum of each. The part is deleted only when
the disk has both the rows and the receipt, so that at any moment one or the other tells.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from virnucpro_pl.output.part_file import Part, read_part, write_part
from virnucpro_pl.output.row_file import RowFile

_PREFIX = "receipt-"
_CHECKSUMS = "checksums"


def receipts_in(folder: Path) -> list[Path]:
    """All receipts of a folder of parts."""
    return sorted(folder.glob(f"{_PREFIX}*.h5"))


def part_of(receipt: Path) -> Path:
    """Name of the part for which a receipt stands."""
    return receipt.with_name("part-" + receipt.name.removeprefix(_PREFIX))


def give_receipt(path: Path, part: Part, checksums: NDArray[np.uint32]) -> None:
    """Replace a part by its receipt; the disk must have its rows elsewhere.

    Args:
        path: The part file.
        part: What it holds.
        checksums: (n,) one for each row, as `RowFile.write` gives them.

    Raises:
        OSError: If the disk is full, for example.
    """
    columns = {"outcome": part.columns["outcome"], _CHECKSUMS: checksums}
    name = _PREFIX + path.name.removeprefix("part-")
    write_part(path.with_name(name), part._replace(columns=columns))
    path.unlink()


def true_receipts(
    receipts: list[Path], half_made: Path, count: int, width: int, dtype: str
) -> list[Path]:
    """Those of some receipts that are whole, and all of whose rows lie in the file as they say.

    Args:
        receipts: Receipts.
        half_made: The output that is being made; see `RowFile` for its sizes.
        count: N, rows.
        width: D, numbers of a row.
        dtype: `float32` or `float16`.

    Raises:
        OSError: If the file cannot be read.
        RuntimeError: If HDF5 does not lay it out in one piece.
    """
    with closing(RowFile(half_made, count, width, dtype)) as rows:
        return [receipt for receipt in receipts if _is_true(receipt, rows, count)]


def _is_true(receipt: Path, rows: RowFile, count: int) -> bool:
    part = read_part(receipt)
    if part is None or _CHECKSUMS not in part.columns or not len(part.rows):
        return False
    if not 0 <= part.rows.min() <= part.rows.max() < count:
        return False
    return bool(np.array_equal(rows.checksums(part.rows), part.columns[_CHECKSUMS]))
