"""The writer of calls: one folder with VirNucPro's two tables and one row per input record."""

from __future__ import annotations

import gzip
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from numpy.typing import NDArray

from virnucpro_pl.errors import UsageError
from virnucpro_pl.output.store import each_part, merge
from virnucpro_pl.output.streaming import StreamingWriter
from virnucpro_pl.output.tables import (
    Contigs,
    summarise_contigs,
    write_contigs,
    write_highest_scores,
    write_prediction_results,
)

__all__ = ["TableWriter"]

log = logging.getLogger(__name__)

_LINE = 60
_BLOCK = 65_536


class TableWriter(StreamingWriter):
    """Writes a folder of tables, in input order, one row for every record of the input.

    `prediction_results.txt` and `prediction_results_highestscore.csv` are those of VirNucPro. In
    `contigs.tsv` the virus_score of a record is the mean over its chunks of the chunk's best
    P(virus); a record is called virus when that is at or above the threshold.
    """

    def __init__(
        self,
        path: str | Path,
        overwrite: bool = False,
        commit_seconds: float = 60.0,
        stall_seconds: float = 600.0,
        threshold: float = 0.5,
        save_embeddings: bool = False,
        compress: bool = False,
    ) -> None:
        """Configure the output; nothing is touched yet.

        Args:
            path: Folder to write.
            overwrite: Whether to replace an existing folder and discard an interrupted run's parts.
            commit_seconds: Longest time that finished rows stay uncommitted.
            stall_seconds: Time without progress after which a rank is reported as stalled.
            threshold: Least virus_score of a record that is called virus, from 0 to 1.
            save_embeddings: Whether to write `esm2.h5` and `dnabert_s.h5` as well.
            compress: Whether to write `virus.fasta.gz` instead of `virus.fasta`.
        """
        super().__init__(path, overwrite, commit_seconds, stall_seconds)
        if not 0 <= threshold <= 1:
            raise UsageError(f"The threshold is a probability from 0 to 1, not {threshold}")
        self.threshold = threshold
        self.save_embeddings = save_embeddings
        self.compress = compress

    @property
    def kept(self) -> list[str]:
        """Names of the columns."""
        return ["scores", *(["dnabert_s", "esm2"] if self.save_embeddings else [])]

    def columns(self, prediction: Any) -> dict[str, torch.Tensor]:
        """Keep scores (N, 2), and embeddings if asked for."""
        return {name: getattr(prediction, name) for name in self.kept}

    def provenance(self, trainer: Trainer) -> dict[str, Any]:
        """What the folder records about input, models and software."""
        return {**super().provenance(trainer), "columns": self.kept}

    def publish(self, trainer: Trainer, parts: list[Path], provenance: dict[str, Any]) -> None:
        """Make the folder beside its final place, and rename it.

        Raises:
            IncompleteError: If any row is missing, doubled, or under a wrong id.
        """
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        store = data.store
        folder = self.parts / "output"
        folder.mkdir()
        scores = np.full((len(store), 2), np.nan, np.float32)
        for part in each_part(parts, len(store), store.ids):
            scores[part.rows] = part.columns["scores"]
        ids = store.ids(np.arange(len(store)))
        write_prediction_results(folder / "prediction_results.txt", ids, scores)
        write_highest_scores(folder / "prediction_results_highestscore.csv", ids, scores)
        summary: dict[str, Any] = {"orfs": len(store), "orfs_scored": _count_scored(scores)}
        if hasattr(store, "contigs"):
            contigs = self._write_contigs(folder, store, scores)
            data.write_orfs(folder)
            summary |= _ledger(contigs)
        if self.save_embeddings:
            self._write_embeddings(folder, store, parts, provenance)
        self._write_summary(folder, summary, provenance)
        self._rename(folder)

    def look(self) -> str:
        """A command that shows the calls."""
        return f"column -t {self.path}/contigs.tsv | head"

    def _write_contigs(self, folder: Path, store: Any, scores: NDArray[np.float32]) -> Contigs:
        columns, records = store.columns, store.contigs
        contigs = summarise_contigs(
            records.lengths,
            columns["n_chunks"],
            columns["record"],
            columns["chunk"],
            scores,
            self.threshold,
        )
        write_contigs(folder / "contigs.tsv", _all_ids(records), contigs)
        path = folder / ("virus.fasta.gz" if self.compress else "virus.fasta")
        opened = gzip.open(path, "wt") if self.compress else path.open("w")
        with opened as file:
            for row in np.flatnonzero(contigs.is_virus):
                [name], [letters] = records.ids(row[None]), records.sequences(row[None])
                lines = [letters[i : i + _LINE].decode() for i in range(0, len(letters), _LINE)]
                file.write("\n".join([f">{name}", *lines, ""]))
        return contigs

    def _write_embeddings(
        self, folder: Path, store: Any, parts: list[Path], provenance: dict[str, Any]
    ) -> None:
        lengths = {"esm2": store.letter_counts("protein"), "dnabert_s": store.letter_counts("nucleotide")}
        for name in ("dnabert_s", "esm2"):
            own = {
                key.removesuffix(f"_{name}"): value
                for key, value in provenance.items()
                if key.endswith(f"_{name}")
            }
            shared = ("input_sha256", "precision", "package_version", "torch_version")
            attributes = {**{key: provenance[key] for key in shared}, **own}
            merge(
                folder / f"{name}.h5",
                self.parts,
                parts,
                column=name,
                ids=store.ids,
                lengths=lengths[name],
                attributes={**attributes, "config": self.config},
            )

    def _write_summary(
        self, folder: Path, summary: dict[str, Any], provenance: dict[str, Any]
    ) -> None:
        content = {**summary, "threshold": self.threshold, **provenance, "config": self.config}
        (folder / "summary.json").write_text(json.dumps(content, indent=2) + "\n")

    def _rename(self, folder: Path) -> None:
        for file in folder.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        if self.path.exists():  # overwrite was asked for, or claim would have refused
            replaced = self.parts / "replaced"
            self.path.rename(replaced)
            folder.rename(self.path)
            shutil.rmtree(replaced)
        else:
            folder.rename(self.path)


def _all_ids(records: Any) -> Iterator[str]:
    for start in range(0, len(records), _BLOCK):
        yield from records.ids(np.arange(start, min(start + _BLOCK, len(records))))


def _count_scored(scores: NDArray[np.float32]) -> int:
    return int(np.isfinite(scores).all(axis=1).sum())


def _ledger(contigs: Contigs) -> dict[str, Any]:
    """Account for every record: their statuses add up to the records of the input."""
    names, counts = np.unique(contigs.status, return_counts=True)
    return {
        "records": len(contigs.lengths),
        "records_by_status": dict(zip(names.tolist(), counts.tolist(), strict=True)),
        "records_called_virus": int(contigs.is_virus.sum()),
        "chunks": int(contigs.n_chunks.sum()),
    }
