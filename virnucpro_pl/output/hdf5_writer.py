"""The writer of embeddings: one HDF5 file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import torch
from lightning.pytorch import LightningModule, Trainer

from virnucpro_pl.embedding_format import FORMAT
from virnucpro_pl.errors import UsageError
from virnucpro_pl.output.merge import Merge
from virnucpro_pl.output.streaming import StreamingWriter


class HDF5Writer(StreamingWriter):
    """Writes one HDF5 file with a vector for every record, in input order."""

    def __init__(
        self,
        path: str | Path,
        overwrite: bool = False,
        commit_seconds: float = 60.0,
        stall_seconds: float = 600.0,
    ) -> None:
        """Configure the output; nothing is touched yet.

        Args:
            path: HDF5 file to write.
            overwrite: Whether to replace an existing file and discard an interrupted run's parts.
            commit_seconds: Longest time that finished rows stay uncommitted.
            stall_seconds: Time without progress after which a rank is reported as stalled.
        """
        super().__init__(path, overwrite, commit_seconds, stall_seconds)
        self._merge: Merge | None = None

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

    def columns(self, prediction: Any) -> dict[str, torch.Tensor]:
        """Keep the vectors (N, D)."""
        return {"embeddings": prediction.vectors}

    def row_bytes(self, pl_module: LightningModule) -> int:
        """Bytes of a vector.

        Raises:
            UsageError: If the model gives no vectors.
        """
        width = getattr(pl_module, "width", None)
        if width is None:
            model = type(pl_module).__name__
            raise UsageError(f"HDF5Writer writes embeddings, {model} gives none: use TableWriter")
        return 4 * int(width)

    def gather(self, trainer: Trainer, parts: list[Path]) -> bool:
        """Merge one of the parts that are there; tell whether more are."""
        return self._begun(trainer).take(parts, most=1)

    def publish(self, trainer: Trainer, parts: list[Path], provenance: dict[str, Any]) -> int:
        """Merge the parts that are not yet, and publish the file.

        Returns:
            How many rows failed.

        Raises:
            IncompleteError: If any row is missing, doubled, or under a wrong id.
        """
        self._signals.shielded = True  # to the end: a part is merged quickly, the rest is one step
        attributes = {key: value for key, value in provenance.items() if key != "max_length"}
        return self.merge(
            self._begun(trainer),
            parts,
            lengths=trainer.datamodule.store.lengths,  # type: ignore[attr-defined]
            attributes={**attributes, "config": self.config},
            max_length=provenance["max_length"],
        )

    def forget(self) -> None:
        """Remove what has been gathered, unless it is published."""
        merge, self._merge = self._merge, None
        if merge is not None:
            merge.discard()

    def _begun(self, trainer: Trainer) -> Merge:
        if self._merge is None:
            store = trainer.datamodule.store  # type: ignore[attr-defined]
            self._merge = Merge(
                self.path, self.parts, column="embeddings", count=len(store), ids=store.ids
            )
        return self._merge

    def result(self, trainer: Trainer, failed: int) -> str:
        """How many vectors of how many numbers."""
        store = trainer.datamodule.store  # type: ignore[attr-defined]
        width: Any = trainer.lightning_module.width
        without = f", {failed:,} without" if failed else ""
        vectors = f"{len(store) - failed:,} vectors of {width:,} numbers"
        return f"{len(store):,} {store.unit}: {vectors}{without}"

    def look(self) -> str:
        """A command that shows the file's first rows."""
        show = "print(f['sequence_ids'].asstr()[:3], f['embeddings'][:3])"
        return f"python -c \"import h5py; f = h5py.File('{self.path}'); {show}\""


def _is_embedding_file(path: Path) -> bool:
    try:
        with h5py.File(path, "r") as file:
            return bool(file.attrs.get("format") == FORMAT)
    except OSError:
        return False
