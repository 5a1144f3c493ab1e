"""The writer of embeddings: one HDF5 file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import h5py
import numpy as np
import torch
from lightning.pytorch import Trainer

from virnucpro_pl.contracts import (
    Batch,
    RowModel,
    SequenceSource,
    failure_records_of,
    model_of,
)
from virnucpro_pl.embedding_format import FORMAT
from virnucpro_pl.errors import UsageError
from virnucpro_pl.output.merge import KEPT_BYTES, Merge
from virnucpro_pl.output.parts_folder import OVERHEAD
from virnucpro_pl.output.receipts import receipts_in, true_receipts
from virnucpro_pl.output.run import COMMIT_BYTES, Run
from virnucpro_pl.output.streaming_writer import Published, StreamingWriter
from virnucpro_pl.stability import FAILED, NumericalInstabilityError

_COLUMN = "embeddings"
"""What parts call a vector."""
Dtype = Literal["float32", "float16"]


class HDF5Writer(StreamingWriter):
    """Writes one HDF5 file with a vector for every record that the data module serves, in order."""

    _merge: Merge | None = None

    def __init__(
        self,
        path: str | Path,
        overwrite: bool = False,
        commit_seconds: float = 60.0,
        stall_seconds: float = 600.0,
        dtype: Dtype = "float32",
    ) -> None:
        """Configure the output; nothing is touched yet.

        Args:
            path: File to write.
            overwrite: Whether to replace an existing file and discard an interrupted run's parts.
            commit_seconds: Longest time that finished rows stay uncommitted.
            stall_seconds: Time without progress after which a rank is reported as stalled.
            dtype: How a number is stored. float16 halves the file and keeps three digits; a vector
                with a number above 65,504 fails, which model.on_instability decides about.
        """
        super().__init__(path, overwrite, commit_seconds, stall_seconds)
        if dtype not in get_args(Dtype):
            raise UsageError(f"--writer.dtype is float32 or float16, not {dtype}")
        self.dtype = dtype

    def check_output(self) -> None:
        """Refuse to replace anything but an embedding file.

        Raises:
            UsageError: If a folder is there, or a file of another kind that would be replaced.
        """
        if self.path.is_dir():
            raise UsageError(f"{self.path} is a folder, and embeddings are one file: name another")
        if self.overwrite and self.path.exists() and not _is_embedding_file(self.path):
            raise UsageError(
                f"{self.path} is not overwritten, since it is no embedding file of this program: "
                "name another --writer.path"
            )

    @property
    def kept(self) -> dict[str, str]:
        """The vectors (N, D)."""
        return {_COLUMN: "vectors"}

    def check_columns(self, model: str, columns: Sequence[str]) -> None:
        """Refuse a model that gives no vectors.

        Raises:
            UsageError: If it gives none.
        """
        if "vectors" not in columns:
            raise UsageError(f"HDF5Writer writes embeddings, {model} gives none: use TableWriter")

    def settings(self) -> dict[str, Any]:
        """How a number is stored; parts hold it so, too."""
        return {"dtype": self.dtype}

    def row_bytes(self, model: RowModel) -> int:
        """Bytes of a vector."""
        return np.dtype(self.dtype).itemsize * model.width_of("vectors")

    def bytes_needed(self, run: Run, count: int, left: int) -> int:
        """Bytes of the rows that are left, and of the parts that are there at any one time."""
        row_bytes = self.row_bytes(run.model) + OVERHEAD
        parts = KEPT_BYTES + 2 * COMMIT_BYTES * run.ranks.count
        return left * row_bytes + min(count * row_bytes, parts)

    def true_receipts(self, run: Run, receipts: list[Path]) -> list[Path]:
        """Those of the receipts whose rows are in the half-made file.

        Raises:
            UsageError: If that cannot be read.
        """
        file, count = run.folder.half_made, len(run.source.store)
        width = run.model.width_of("vectors")
        try:
            return true_receipts(receipts, file, count, width, self.dtype)
        except (OSError, RuntimeError) as error:
            raise UsageError(
                f"{file}, which holds rows of the interrupted run, cannot be read: {error}. Start "
                "over with --writer.overwrite true"
            ) from error

    def narrow(
        self, trainer: Trainer, batch: Batch, batch_idx: int, columns: dict[str, torch.Tensor]
    ) -> None:
        """Round the vectors, if they are to be float16; the model's policy is for those too large.

        Raises:
            NumericalInstabilityError: With the ids of those, unless the model leaves failures out.
        """
        if self.dtype == "float32":
            return
        vectors = columns[_COLUMN]
        half = columns[_COLUMN] = vectors.half()
        too_large = half.isinf() & vectors.isfinite()
        fails = too_large.any(dim=1)
        if not fails.any():
            return
        ids = [name for name, lost in zip(batch.ids, fails.tolist(), strict=True) if lost]
        error = NumericalInstabilityError(
            f"{len(ids)} vector(s) hold numbers of up to {vectors[too_large].abs().max():.2e}, "
            "which float16 cannot store: it ends at 6.55e+04. --writer.dtype float32 stores them.",
            inf_count=int(too_large.sum()),
            sequence_ids=ids,
        )
        model = model_of(trainer)
        if model is None or not model.leaves_out_failures:
            raise error
        half[fails] = torch.nan
        columns["outcome"] = columns["outcome"].masked_fill(fails, FAILED)
        for log in failure_records_of(trainer):
            log.record(trainer, error, ids, batch_idx)

    def gather(self, run: Run, parts: list[Path]) -> bool:
        """Merge one of the parts that are there; tell whether more are."""
        return self._begun_merge(run).take(parts, most=1)

    def publish(self, run: Run, parts: list[Path], provenance: dict[str, Any]) -> Published:
        """Merge the parts that are not yet, and publish the file.

        Raises:
            IncompleteError: If any row is missing, doubled, or under a wrong id.
        """
        run.signals.shielded = True  # to the end: a part is merged quickly, the rest is one step
        assert isinstance(run.source, SequenceSource), "vectors are of sequences"
        merge, rows = self._begun_merge(run), run.source.store
        run.take_parts(merge, parts)
        attributes = {key: value for key, value in provenance.items() if key != "max_length"}
        failed = merge.publish(
            lengths=rows.lengths,
            attributes={**attributes, "config": self.config},
            max_length=provenance["max_length"],
            inputs=run.source.inputs,
        )
        without = f", {failed:,} without" if failed else ""
        vectors = f"{len(rows) - failed:,} vectors of {run.model.width_of('vectors'):,} numbers"
        show = "print(f['sequence_ids'].asstr()[:3], f['embeddings'][:3])"
        return Published(
            failed,
            f"{len(rows):,} {rows.unit}: {vectors}{without}",
            f"python -c \"import h5py; f = h5py.File('{self.path}'); {show}\"",
        )

    def forget(self) -> None:
        """Remove what has been gathered, unless it is published."""
        merge, self._merge = self._merge, None
        if merge is not None:
            merge.discard()

    def _begun_merge(self, run: Run) -> Merge:
        if self._merge is None:
            rows = run.source.store
            self._merge = Merge(
                self.path,
                run.folder.half_made,
                column=_COLUMN,
                count=len(rows),
                ids=rows.ids,
                width=run.model.width_of("vectors"),
                dtype=self.dtype,
                receipts=receipts_in(run.folder.path),
            )
        return self._merge


def _is_embedding_file(path: Path) -> bool:
    if not path.is_file():  # nothing comes out of a pipe, for ever
        return False
    try:
        with h5py.File(path, "r") as file:
            return bool(file.attrs.get("format") == FORMAT)
    except OSError:
        return False
