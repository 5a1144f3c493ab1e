"""The writer of calls: one folder with VirNucPro's two tables and one row per input record."""

from __future__ import annotations

import gzip
import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from numpy.typing import NDArray

from virnucpro_pl.errors import UsageError, listed
from virnucpro_pl.output.files import flush
from virnucpro_pl.output.merge import Merge
from virnucpro_pl.output.overlap import is_taken
from virnucpro_pl.output.part import each_part
from virnucpro_pl.output.parts import REPLACED
from virnucpro_pl.output.streaming import StreamingWriter
from virnucpro_pl.output.tables import (
    STATUSES,
    Contigs,
    blocks,
    is_scored,
    summarise_contigs,
    write_contigs,
    write_highest_scores,
    write_prediction_results,
)

log = logging.getLogger(__name__)

_LINE = 60
"""Bases of a line of FASTA."""
_VIRUSES = 1 << 14
"""Viral contigs whose ids are in memory at a time."""
_OURS = re.compile(
    r"prediction_results\.txt|prediction_results_highestscore\.csv|contigs\.tsv|summary\.json"
    r"|virus\.fasta(\.gz)?|esm2\.h5|dnabert_s\.h5|.*_identified_(nucleotide\.fa|protein\.faa)"
)
"""Files that a folder of this writer may hold."""


class TableWriter(StreamingWriter):
    """Writes a folder of tables, in input order, one row for every record of the input.

    `prediction_results.txt` and `prediction_results_highestscore.csv` are those of VirNucPro. In
    `contigs.tsv` the virus_score of a record is the mean over its chunks of the chunk's best
    P(virus), that of the best of its up to six open frames; chunks without one do not enter. A
    record is called virus when its virus_score is at or above the threshold.
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
            threshold: Least virus_score of a record that is called virus, from 0 to 1. The
                virus_score is the mean over the record's chunks of the chunk's best P(virus).
            save_embeddings: Whether to write `esm2.h5` and `dnabert_s.h5` as well.
            compress: Whether to write `virus.fasta.gz` instead of `virus.fasta`.
        """
        super().__init__(path, overwrite, commit_seconds, stall_seconds)
        if not 0 <= threshold <= 1:
            raise UsageError(
                f"--writer.threshold is a probability, a number from 0 to 1, not {threshold}"
            )
        self.threshold = threshold
        self.save_embeddings = save_embeddings
        self.compress = compress
        self._shown = "prediction_results.txt"
        self._result = ""

    @property
    def kept(self) -> list[str]:
        """Names of the columns."""
        return ["scores", *(["dnabert_s", "esm2"] if self.save_embeddings else [])]

    def columns(self, prediction: Any) -> dict[str, torch.Tensor]:
        """Keep scores (N, 2), and embeddings if asked for."""
        return {name: getattr(prediction, name) for name in self.kept}

    def row_bytes(self, pl_module: LightningModule) -> int:
        """Bytes of two scores, and of both vectors if asked for."""
        embedders = getattr(pl_module, "embedders", ()) if self.save_embeddings else ()
        return 8 + 4 * sum(int(embedder.width) for embedder in embedders)

    def check_output(self) -> None:
        """Refuse to replace a file, or a folder that holds more than calls.

        Raises:
            UsageError: If overwriting would delete what this writer has not made.
        """
        if self.overwrite and self.path.exists():
            if not self.path.is_dir():
                raise UsageError(f"{self.path} is a file, and calls are a folder: name another")
            others = sorted(p.name for p in self.path.iterdir() if not _OURS.fullmatch(p.name))
            if others:
                raise UsageError(
                    f"{self.path} is not overwritten, since it holds more than calls: "
                    f"{listed(others)}. Name another --writer.path"
                )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Join the other ranks, and keep predictions out of RAM.

        Raises:
            UsageError: If the model gives nothing that this writer could write.
        """
        model = type(pl_module).__name__
        if not hasattr(pl_module, "classifier_source"):
            raise UsageError(f"A TableWriter writes calls, and {model} makes none: use HDF5Writer")
        if self.save_embeddings and not hasattr(pl_module, "embedders"):
            raise UsageError(f"save_embeddings is not for {model}: its embeddings exist already")
        super().setup(trainer, pl_module, stage)

    def provenance(self, trainer: Trainer) -> dict[str, Any]:
        """What the folder records about input, models and software."""
        return {**super().provenance(trainer), "columns": self.kept}

    def publish(self, trainer: Trainer, parts: list[Path], provenance: dict[str, Any]) -> int:
        """Make the folder beside its final place, and rename it.

        Returns:
            How many ORFs have no score.

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
        write_prediction_results(folder / "prediction_results.txt", store.ids, scores)
        chunks = folder / "prediction_results_highestscore.csv"
        write_highest_scores(chunks, store.ids, scores, self.parts)
        ledger = _orf_ledger(scores)
        self._result = _orf_result(scores)
        if hasattr(store, "contigs"):
            contigs = self._write_contigs(folder, store, scores)
            data.write_orfs(folder)
            ledger = {**_record_ledger(contigs), **ledger}
            self._shown = "contigs.tsv"
            self._result = _record_result(ledger)
        if self.save_embeddings:
            self._write_embeddings(folder, trainer.lightning_module, store, parts, provenance)
        ledger["input_counts"] = data.input_counts
        self._write_summary(folder, ledger, provenance)
        self._rename(folder)
        return len(store) - int(ledger["orfs_scored"])

    def result(self, trainer: Trainer, failed: int) -> str:
        """How many are called what."""
        return self._result

    def look(self) -> str:
        """A command that shows the calls."""
        return f"column -t {self.path}/{self._shown} | head"

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
        write_contigs(folder / "contigs.tsv", records.ids, contigs)
        self._write_viruses(folder, records, np.flatnonzero(contigs.is_virus))
        return contigs

    def _write_viruses(self, folder: Path, records: Any, rows: NDArray[np.int64]) -> None:
        path = folder / ("virus.fasta.gz" if self.compress else "virus.fasta")
        with path.open("wb") as raw:
            # Without name and time, so that the same calls give the same bytes.
            file = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if self.compress else raw
            for block in blocks(len(rows), _VIRUSES):
                for row, name in zip(rows[block], records.ids(rows[block]), strict=True):
                    [letters] = records.sequences(row[None])
                    lines = [letters[i : i + _LINE] for i in range(0, len(letters), _LINE)]
                    file.write(b"\n".join([b">%b" % name.encode(), *lines, b""]))
            if self.compress:
                file.close()

    def _write_embeddings(
        self,
        folder: Path,
        model: Any,
        store: Any,
        parts: list[Path],
        provenance: dict[str, Any],
    ) -> None:
        self._signals.shielded = True  # to the end: there is little behind the last merge
        for name, kind in (("dnabert_s", "nucleotide"), ("esm2", "protein")):
            own = {
                key.removesuffix(f"_{name}"): value
                for key, value in provenance.items()
                if key.endswith(f"_{name}")
            }
            shared = ("input_sha256", "precision", "package_version", "torch_version")
            attributes = {**{key: provenance[key] for key in shared}, **own}
            merge = Merge(
                folder / f"{name}.h5",
                self.parts,
                column=name,
                count=len(store),
                ids=store.ids,
                width=getattr(model, name).width,
            )
            try:
                self.merge(
                    merge,
                    parts,
                    lengths=store.letter_counts(kind),
                    attributes={**attributes, "config": self.config},
                    max_length=_letters(kind, provenance["max_length"]),
                )
            finally:
                merge.discard()

    def _write_summary(
        self, folder: Path, ledger: dict[str, Any], provenance: dict[str, Any]
    ) -> None:
        warnings = _warnings(ledger, provenance)
        for warning in warnings:
            log.warning("%s", warning)
        content = {
            "warnings": warnings,
            **ledger,
            "threshold": self.threshold,
            **provenance,
            "config": self.config,
        }
        text = json.dumps(content, indent=2)
        (folder / "summary.json").write_text(f"{text}\n", encoding="utf-8")

    def _rename(self, folder: Path) -> None:
        for file in (*folder.iterdir(), folder):
            flush(file)
        replaced = self.parts / REPLACED
        self._signals.shielded = True  # there shall be no moment without either folder
        if (self.overwrite and is_taken(self.path)) or self.path.is_symlink():
            self.path.rename(replaced)
        folder.rename(self.path)  # also in the place of an empty folder
        flush(self.path.parent)
        if replaced.is_symlink():
            replaced.unlink()
        elif replaced.exists():
            shutil.rmtree(replaced)


def _letters(kind: str, residues: int | None) -> int | None:
    """Letters of a `protein` or `nucleotide` string that code for so many residues."""
    return residues if residues is None or kind == "protein" else 3 * residues


def _orf_ledger(scores: NDArray[np.float32]) -> dict[str, Any]:
    """Account for every ORF: scored and skipped ones add up to all."""
    scored = int(is_scored(scores).sum())
    return {
        "orfs": len(scores),
        "orfs_scored": scored,
        "orfs_skipped": {"embedding_not_finite": len(scores) - scored},
    }


def _record_ledger(contigs: Contigs) -> dict[str, Any]:
    """Account for every record and chunk: the parts of each add up to all."""
    chunks, with_orf = int(contigs.n_chunks.sum()), int(contigs.n_orf_chunks.sum())
    scored = int(contigs.n_scored_chunks.sum())
    by_status = np.bincount(contigs.status, minlength=len(STATUSES)).tolist()
    viruses = int(contigs.is_virus.sum())
    has_score = by_status[STATUSES.index("ok")]
    partly = (contigs.n_scored_orfs > 0) & (contigs.n_scored_orfs < contigs.n_orfs)
    return {
        "records": len(contigs.lengths),
        "records_scored_in_part": int(partly.sum()),
        "records_by_status": dict(zip(STATUSES, by_status, strict=True)),
        "records_by_prediction": {
            "virus": viruses,
            "others": has_score - viruses,
            "NA": len(contigs.lengths) - has_score,
        },
        "chunks": chunks,
        "chunks_by_status": {
            "ok": scored,
            "no_orf": chunks - with_orf,
            "failed": with_orf - scored,
        },
    }


def _orf_result(scores: NDArray[np.float32]) -> str:
    """How many ORFs have which label, as in `prediction_results.txt`."""
    scored = is_scored(scores)
    viruses = int((scores[scored, 1] > scores[scored, 0]).sum())
    others = int(scored.sum()) - viruses
    return _counts("open reading frames", viruses, others, len(scores) - viruses - others)


def _record_result(ledger: dict[str, Any]) -> str:
    """How many records are called what, as in `contigs.tsv`."""
    calls = ledger["records_by_prediction"]
    return _counts("records", calls["virus"], calls["others"], calls["NA"])


def _counts(unit: str, viruses: int, others: int, without: int) -> str:
    count = viruses + others + without
    return f"{count:,} {unit}: {viruses:,} virus, {others:,} others, {without:,} without a score"


def _warnings(ledger: dict[str, Any], provenance: dict[str, Any]) -> list[str]:
    """What a reader of the tables must know before anything else."""
    random = [str(value) for value in provenance.values() if str(value).startswith("random:")]
    warnings = []
    if random:
        names = listed([value.split(":")[1] for value in random])
        warnings.append(f"These calls mean nothing: RANDOM weights of {names}")
    if lost := ledger["orfs_skipped"]["embedding_not_finite"]:
        warnings.append(
            f"{lost} of {ledger['orfs']} ORFs have no score (NA in the tables), since their "
            "embeddings are not finite"
        )
    if partly := ledger.get("records_scored_in_part"):
        warnings.append(f"{partly} records are called without some of their ORFs")
    return warnings
