"""The writer of calls: one folder with VirNucPro's two tables and one row per input record."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro_pl.contracts import Contigs, Molecule, OrfOrigin
from virnucpro_pl.errors import UsageError, listed
from virnucpro_pl.output.atomic_files import publish_folder, temporary_name
from virnucpro_pl.output.chunk_table import (
    chunk_blocks,
    summarise_chunks,
    write_bed,
    write_chunks,
)
from virnucpro_pl.output.fasta import open_fasta, write_record
from virnucpro_pl.output.figures_file import holds
from virnucpro_pl.output.merge import Merge
from virnucpro_pl.output.part_file import Tally
from virnucpro_pl.output.parts_folder import REPLACED
from virnucpro_pl.output.regions import write_regions
from virnucpro_pl.output.run import Run
from virnucpro_pl.output.streaming_writer import Published, StreamingWriter
from virnucpro_pl.output.summary import (
    orf_ledger,
    orf_result,
    record_ledger,
    record_result,
    write_summary,
)
from virnucpro_pl.output.tables import (
    CODON_BASES,
    ContigCalls,
    summarise_contigs,
    write_contigs,
    write_highest_scores,
    write_prediction_results,
)

_BASES = 1 << 20
"""Bases of viral contigs that are read at a time, and one contig beyond them."""
_THRESHOLD = 0.5
_EMBEDDINGS: dict[str, Molecule] = {"dnabert_s": "DNA", "esm2": "protein"}
"""Columns of embeddings, and what each is of."""
_OURS = re.compile(
    r"prediction_results\.txt|prediction_results_highestscore\.csv|summary\.json"
    r"|contigs\.tsv|chunks\.(tsv|bed)|regions\.tsv|(virus|regions)\.fasta(\.gz)?"
    r"|esm2\.h5|dnabert_s\.h5|.*_identified_(nucleotide\.fa|protein\.faa)"
)
"""Files that a folder of this writer may hold."""


class TableWriter(StreamingWriter):
    """Writes a folder of tables, in input order, one row for every record of the input.

    `prediction_results.txt` and `prediction_results_highestscore.csv` are those of VirNucPro. In
    `contigs.tsv` the virus_score of a record is the mean over its chunks of the chunk's best
    P(virus), that of the best of its up to six open frames; chunks without one do not enter. A
    record is called virus when its virus_score is at or above the threshold, or its false discovery
    rate at most max_fdr.
    """

    def __init__(
        self,
        path: str | Path,
        overwrite: bool = False,
        commit_seconds: float = 60.0,
        stall_seconds: float = 600.0,
        threshold: float = _THRESHOLD,
        save_embeddings: bool = False,
        compress: bool = False,
        bed: bool = False,
        region_gap: int = 1,
        region_chunks: int = 3,
        max_fdr: float | None = None,
        prevalence: float | None = None,
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
            compress: Whether to write `virus.fasta.gz` and `regions.fasta.gz`, compressed.
            bed: Whether to write the chunks called virus as `chunks.bed`, too.
            region_gap: Chunks in a row without a score that a viral region may hold.
            region_chunks: Least number of chunks called virus in a viral region.
            max_fdr: Call virus, in place of the threshold, the records of the highest
                virus_probability, as many as have a false discovery rate of at most this, from 0 to
                1: such as 0.05. Only with a classifier that knows what its scores mean, as `fit`
                makes it.
            prevalence: Share of virus that you expect among the records, between 0 and 1: corrects
                virus_probability and fdr, which else are right for records as the classifier was
                calibrated on. Only with such a classifier.
        """
        super().__init__(path, overwrite, commit_seconds, stall_seconds)
        if not 0 <= threshold <= 1:
            raise UsageError(
                f"--writer.threshold is a probability, a number from 0 to 1, not {threshold}"
            )
        if region_gap < 0:
            raise UsageError(f"--writer.region_gap must be at least 0, not {region_gap}")
        if region_chunks < 1:
            raise UsageError(f"--writer.region_chunks must be at least 1, not {region_chunks}")
        if max_fdr is not None and not 0 <= max_fdr <= 1:
            raise UsageError(f"--writer.max_fdr is a rate, a number from 0 to 1, not {max_fdr}")
        if max_fdr is not None and threshold != _THRESHOLD:
            raise UsageError(
                "--writer.max_fdr takes the place of --writer.threshold: give one of both"
            )
        if prevalence is not None and not 0 < prevalence < 1:
            raise UsageError(
                f"--writer.prevalence is a share between 0 and 1, not {prevalence}: such as 0.01"
            )
        self.threshold = threshold
        self.save_embeddings = save_embeddings
        self.compress = compress
        self.bed = bed
        self.region_gap = region_gap
        self.region_chunks = region_chunks
        self.max_fdr = max_fdr
        self.prevalence = prevalence

    @property
    def kept(self) -> dict[str, str]:
        """Scores (N, 2), and embeddings if asked for."""
        names = ["scores", *(_EMBEDDINGS if self.save_embeddings else ())]
        return {name: name for name in names}

    @property
    def needs_calibration(self) -> str:
        """The option that asks what scores mean, if one does."""
        asked = {"--writer.max_fdr": self.max_fdr, "--writer.prevalence": self.prevalence}
        return next((option for option, value in asked.items() if value is not None), "")

    def settings(self) -> dict[str, Any]:
        """The columns that parts hold."""
        return {"columns": list(self.kept)}

    def check_columns(self, model: str, columns: Sequence[str]) -> None:
        """Refuse a model without scores, or without the embeddings that are asked for.

        Raises:
            UsageError: If the model gives nothing that this writer could write.
        """
        if "scores" not in columns:
            raise UsageError(f"A TableWriter writes calls, and {model} makes none: use HDF5Writer")
        if not set(columns).issuperset(self.kept):
            raise UsageError(f"save_embeddings is not for {model}: its embeddings exist already")
        if self.bed and not set(columns).issuperset(_EMBEDDINGS):
            raise UsageError(f"bed is not for {model}: embeddings do not say where chunks lie")
        if self.needs_calibration and not set(columns).issuperset(_EMBEDDINGS):
            raise UsageError(
                f"{self.needs_calibration} is not for {model}: it is about records, and embeddings "
                "do not say which there are"
            )

    def check_output(self) -> None:
        """Refuse to replace a file, or a folder that holds more than calls.

        Raises:
            UsageError: If overwriting would delete what this writer has not made.
        """
        if self.overwrite and self.path.exists():
            if not self.path.is_dir():
                raise UsageError(f"{self.path} is a file, and calls are a folder: name another")
            names = sorted(file.name for file in self.path.iterdir())
            if others := [name for name in names if not _OURS.fullmatch(name)]:
                raise UsageError(
                    f"{self.path} is not overwritten, since it holds more than calls: "
                    f"{listed(others)}. Name another --writer.path"
                )
            if names and not holds(self.path / "summary.json", ("orfs", "package_version")):
                raise UsageError(
                    f"{self.path} is not overwritten, since its summary.json is not of calls of "
                    "this program: name another --writer.path"
                )

    def publish(self, run: Run, parts: list[Path], provenance: dict[str, Any]) -> Published:
        """Make the folder beside its final place, and rename it.

        Raises:
            IncompleteError: If any row is missing, doubled, or under a wrong id.
        """
        rows, origin = run.source.store, run.source.origin
        folder = run.folder.path / "output"
        folder.mkdir()
        scores, tally = np.full((len(rows), 2), np.nan, np.float32), Tally(len(rows), rows.ids)
        for part in map(tally.read, parts):
            scores[part.rows] = part.columns["scores"]
        tally.finish()
        write_prediction_results(folder / "prediction_results.txt", rows.ids, scores)
        chunks = folder / "prediction_results_highestscore.csv"
        write_highest_scores(chunks, rows.ids, scores, run.folder.path)
        ledger, result, shown = orf_ledger(scores), orf_result(scores), "prediction_results.txt"
        if origin is not None:
            calls, regions = self._write_contigs(folder, run, origin, scores)
            ledger = {**record_ledger(calls), "regions": regions, **ledger}
            result, shown = record_result(ledger), "contigs.tsv"
        run.source.write_beside(folder)
        if self.save_embeddings:
            self._write_embeddings(folder, run, parts, provenance)
        ledger["input_counts"] = run.source.input_counts
        if run.source.distinct is not None:
            ledger["distinct"] = run.source.distinct
        if run.source.inputs is not None:
            ledger["inputs"] = run.source.inputs.counts
        write_summary(
            folder / "summary.json",
            ledger,
            called_by=self._called_by(),
            provenance=provenance,
            config=self.config,
        )
        run.signals.shielded = True  # there shall be no moment without either folder
        replaced = run.folder.path / REPLACED
        publish_folder(folder, self.path, replaced, overwrite=self.overwrite)
        failed = len(rows) - int(ledger["orfs_scored"])
        return Published(failed, result, f"column -t {self.path}/{shown} | head")

    def _called_by(self) -> dict[str, float | None]:
        """What decides whether a record is called virus."""
        threshold = self.threshold if self.max_fdr is None else None
        return {"threshold": threshold, "max_fdr": self.max_fdr, "prevalence": self.prevalence}

    def _write_contigs(
        self, folder: Path, run: Run, origin: OrfOrigin, scores: NDArray[np.float32]
    ) -> tuple[ContigCalls, int]:
        """Write all that is of contigs and not of ORFs; the calls, and how many regions."""
        contigs, inputs = origin.contigs, run.source.inputs
        chunks = summarise_chunks(
            origin.n_chunks, origin.record, origin.chunk, origin.frame, scores
        )
        write_chunks(folder / "chunks.tsv", chunk_blocks(origin, chunks), inputs)
        if self.bed:
            write_bed(folder / "chunks.bed", chunk_blocks(origin, chunks))
        calls = summarise_contigs(
            contigs.lengths,
            chunks,
            threshold=self.threshold,
            min_length=origin.min_length,
            calibration=run.model.calibration,
            prevalence=self.prevalence,
            max_fdr=self.max_fdr,
            n_sampled=origin.n_sampled,
        )
        write_contigs(folder / "contigs.tsv", contigs.ids, calls, inputs)
        self._write_viruses(folder, contigs, np.flatnonzero(calls.is_virus))
        regions = write_regions(
            folder,
            chunk_blocks(origin, chunks),
            contigs,
            gap=self.region_gap,
            least=self.region_chunks,
            compress=self.compress,
        )
        return calls, regions

    def _write_viruses(self, folder: Path, contigs: Contigs, rows: NDArray[np.int64]) -> None:
        with open_fasta(folder / "virus.fasta", compress=self.compress) as file:
            turn = np.cumsum(contigs.lengths[rows]) // _BASES
            for block in np.split(rows, np.flatnonzero(np.diff(turn)) + 1):
                for name, letters in zip(contigs.ids(block), contigs.sequences(block), strict=True):
                    write_record(file, name, letters)

    def _write_embeddings(
        self, folder: Path, run: Run, parts: list[Path], provenance: dict[str, Any]
    ) -> None:
        run.signals.shielded = True  # to the end: there is little behind the last merge
        rows, origin, inputs = run.source.store, run.source.origin, run.source.inputs
        assert origin is not None, "only ORFs of contigs have both embeddings"
        shared = (
            *("input_sha256", "chunk_length", "min_length", "max_chunks", "precision"),
            *("package_version", "torch_version"),
        )
        residues = provenance["max_length"]
        longest = {"protein": residues, "DNA": residues and CODON_BASES * residues}
        for name, molecule in _EMBEDDINGS.items():
            attributes = {key: provenance[key] for key in shared if key in provenance}
            for key, value in provenance.items():
                if key.endswith(f"_{name}"):
                    attributes[key.removesuffix(f"_{name}")] = value
            merge = Merge(
                folder / f"{name}.h5",
                temporary_name(folder / f"{name}.h5", run.folder.path),
                column=name,
                count=len(rows),
                ids=rows.ids,
                width=run.model.width_of(name),
            )
            try:
                run.take_parts(merge, parts)
                merge.publish(
                    lengths=origin.letters[molecule],
                    attributes={**attributes, "config": self.config},
                    max_length=longest[molecule],
                    inputs=inputs and inputs._replace(file=inputs.file[origin.record]),
                )
            finally:
                merge.discard()
