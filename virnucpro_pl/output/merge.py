"""From parts to one embedding file: merged while others are computed, published when all are there.

The file holds `/embeddings` (N, D) float32 or float16, `/sequence_ids` (N,) and `/lengths` (N,)
int32, row i being record i of the input; `/failed` and `/recomputed`, the numbers of the rows that
have no vector (they are NaN) and of those computed again in FP32; and `complete=True` among its
attributes, written last. Where the run read several files, `/inputs` are their names, and `/input`
(N,) int32 says which of them each row is of.

Parts are copied by hand: HDF5's virtual datasets would need the parts forever, and tools that join
files row behind row do not know which row is which record.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from virnucpro_pl.contracts import Inputs
from virnucpro_pl.embedding_format import FORMAT, FORMAT_VERSION
from virnucpro_pl.output.atomic_files import publish
from virnucpro_pl.output.part_file import Tally
from virnucpro_pl.output.receipts import give_receipt, part_of, receipts_in
from virnucpro_pl.output.row_file import RowFile
from virnucpro_pl.stability import FAILED, FINE, RECOMPUTED

KEPT_BYTES = 128 << 20
"""Parts that are merged are deleted only while all parts take more than this: up to here they are
kept, so that a half-made file that is lost costs nothing."""
_ID_BLOCK = 65_536
_FORMAT = {"format": FORMAT, "format_version": FORMAT_VERSION}


class Merge:
    """An embedding file in the making; nobody sees it before it is published."""

    def __init__(
        self,
        path: Path,
        half_made: Path,
        *,
        column: str,
        count: int,
        ids: Callable[[NDArray[np.int64]], list[str]],
        width: int,
        dtype: str = "float32",
        receipts: Sequence[Path] | None = None,
    ) -> None:
        """Begin the file under another name.

        Args:
            path: The file to publish; one that is there is replaced.
            half_made: The file while it is being made, on the same file system.
            column: The column of the parts that becomes `/embeddings`.
            count: N, rows of the input.
            ids: Gives the ids of some rows of the input.
            width: D, numbers of a vector.
            dtype: What the file holds of each number, `float32` or `float16`.
            receipts: Those whose rows are in the half-made file, where merged parts may be deleted;
                None where other outputs are made of the same parts.

        Raises:
            IncompleteError: If a receipt is damaged, or holds rows of another.
            OSError: If the file cannot be created.
        """
        self.path = path
        self._half_made = half_made
        self._column = column
        self._ids = ids
        self._tally = Tally(count, ids)
        self._outcome = np.full(count, FINE, np.uint8)
        self._gives_receipts = receipts is not None
        self._taken = {part_of(receipt) for receipt in receipts or ()}
        for receipt in receipts or ():
            part = self._tally.read(receipt)
            self._outcome[part.rows] = part.columns["outcome"]
        self._rows = RowFile(half_made, count, width, dtype)
        self._names = self._rows.file.create_dataset(
            "sequence_ids",
            (count,),
            h5py.string_dtype(),
            chunks=(min(count, _ID_BLOCK),) if count else None,
        )
        self._named = 0

    def take(self, parts: Iterable[Path], most: int | None = None) -> bool:
        """Copy parts into the file, each once however often it is named.

        Args:
            parts: Part files.
            most: How many are taken at most, of those that have not been; None for all.

        Returns:
            Whether some are left.

        Raises:
            IncompleteError: If a part is damaged, or holds rows of another part, under other ids or
                that the input does not have.
            OSError: If the disk is full, for example.
        """
        new = [path for path in parts if path not in self._taken]
        for path in new[:most]:
            part = self._tally.read(path)
            checksums = self._rows.write(part.rows, part.columns[self._column])
            self._outcome[part.rows] = part.columns["outcome"]
            self._taken.add(path)
            self._name_more()  # a little each time: the end is quick
            if self._gives_receipts and _bytes_of_parts(path.parent) > KEPT_BYTES:
                give_receipt(path, part, checksums)
        return most is not None and len(new) > most

    def _name_more(self) -> bool:
        """Write a block of the ids; tell whether there was one left."""
        rows = np.arange(self._named, min(self._named + _ID_BLOCK, len(self._names)))
        if len(rows):
            self._names[rows[0] : rows[-1] + 1] = self._ids(rows)
        self._named += len(rows)
        return len(rows) > 0

    def publish(
        self,
        *,
        lengths: NDArray[np.int64],
        attributes: Mapping[str, Any],
        max_length: int | None = None,
        inputs: Inputs | None = None,
    ) -> int:
        """Write the ids that are left, lengths and attributes, and give the file its name.

        Args:
            lengths: (N,) letters of each record of the input.
            attributes: Root attributes beside the format's own; those that are None are left out.
            max_length: Letters at which records were cut; None if they were not.
            inputs: The files that were read, and which of them each row is of; None of one file.

        Returns:
            How many rows have no vector: they are NaN, and listed in `/failed`.

        Raises:
            IncompleteError: If a row is missing.
            OSError: If the disk is full, for example.
        """
        self._tally.finish()
        while self._name_more():
            pass
        file = self._rows.file
        _write_lengths(file, lengths, max_length)
        if inputs is not None:
            file.create_dataset("inputs", data=inputs.names, dtype=h5py.string_dtype())
            file["input"] = inputs.file.astype(np.int32)
        file["failed"] = failed = np.flatnonzero(self._outcome == FAILED)
        file["recomputed"] = np.flatnonzero(self._outcome == RECOMPUTED)
        known = {name: value for name, value in attributes.items() if value is not None}
        if "model" in known:
            known["model_name"] = known["model"]  # what protspace asks for
        file.attrs.update({**_FORMAT, "dtype": self._rows.dtype.name, **known})
        file.flush()
        file.attrs["complete"] = True
        self._rows.close()
        self._rows.raise_error()
        publish(self._half_made, self.path)
        return len(failed)

    def discard(self) -> None:
        """Remove what there is of the file, unless it is published or receipts are for its rows."""
        try:
            self._rows.close()
        finally:
            if not (self._gives_receipts and receipts_in(self._half_made.parent)):
                with contextlib.suppress(OSError):  # the next run removes it
                    self._half_made.unlink(missing_ok=True)


def _bytes_of_parts(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("part-*.h5"))


def _write_lengths(file: h5py.File, lengths: NDArray[np.int64], max_length: int | None) -> None:
    embedded = lengths if max_length is None else np.minimum(lengths, max_length)
    dataset = file.create_dataset("lengths", data=embedded.astype(np.int32))
    if max_length is not None:
        dataset.attrs["max_length"] = max_length
        dataset.attrs["truncated_records"] = int(np.count_nonzero(lengths > max_length))
