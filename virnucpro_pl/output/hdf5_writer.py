"""The writer of embeddings: one HDF5 file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py

from virnucpro_pl.contracts import SequenceSource
from virnucpro_pl.embedding_format import FORMAT
from virnucpro_pl.errors import UsageError
from virnucpro_pl.output.merge import Merge
from virnucpro_pl.output.run import Run
from virnucpro_pl.output.streaming_writer import Published, StreamingWriter

_COLUMN = "embeddings"
"""What parts call a vector."""


class HDF5Writer(StreamingWriter):
    """Writes one HDF5 file with a vector for every record that the data module serves, in order."""

    _merge: Merge | None = None

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
                run.folder.path,
                column=_COLUMN,
                count=len(rows),
                ids=rows.ids,
                width=run.model.width_of("vectors"),
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
