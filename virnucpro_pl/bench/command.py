"""The command `virnucpro-pl bench`: its options, its tables and its JSON."""

from __future__ import annotations

import logging
import math
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from virnucpro_pl import cores
from virnucpro_pl.bench.case import DNA, Case, draw, draw_genes
from virnucpro_pl.bench.host import six_frames, tokenising
from virnucpro_pl.bench.meter import Row
from virnucpro_pl.bench.ours import encoder_alone, encoders_alone, end_to_end, fused
from virnucpro_pl.bench.peers import import_authors_code
from virnucpro_pl.bench.peers import peers as measure_peers
from virnucpro_pl.bench.processes import ProcessRow, processes
from virnucpro_pl.errors import UsageError
from virnucpro_pl.models.esm2 import SIZES
from virnucpro_pl.output.figures_file import check_figures_file, write_figures

log = logging.getLogger(__name__)

FUSED = "virnucpro"
_KEYS = ("workload", "rows", "processes")
"""What every file of figures holds, so that no other file is taken for an earlier one."""


def bench(
    model: str = "esm2_t36_3B_UR50D",
    workload: str = "500-base",
    seconds: float = 30.0,
    tokens_per_batch: int = 32_768,
    num_workers: int = 1,
    duplicates: float = 0.0,
    peers: bool = True,
    devices: int = 0,
    esm2: str = "esm2_t36_3B_UR50D",
    authors_code: str | None = None,
    output: Path = Path("bench.json"),
) -> None:
    """Measure this program, its peers and the hardware's limit in one run, on random weights.

    Args:
        model: `virnucpro`, `dnabert_s`, or the name of an ESM-2 such as esm2_t36_3B_UR50D.
        workload: `500-base` (166 residues, or 500 bases of DNA), `proteome` (log-normal lengths, 30
            to 1022 residues), or a FASTA or FASTQ file. 500-base only for `virnucpro`.
        seconds: Length of a run end to end; everything else takes a third of it at most.
        tokens_per_batch: Tokens of a pack.
        num_workers: DataLoader processes.
        duplicates: Share of the records of a run end to end that repeat another one, from 0 to
            less than 1. Tokens/s count what is computed, sequences/s all records.
        peers: Whether to measure fair-esm, transformers and VirNucPro's own setting as well, or
            Biopython's translation for `virnucpro`; not with `devices`.
        devices: With 1, run the command as users do and measure it from its start to its first
            pack; with more, also how it scales over so many GPUs, beside the encoder alone.
            0 measures within this process.
        esm2: Name of the ESM-2 of `virnucpro`.
        authors_code: Importable package of DNABERT-S's authors' `bert_layers.py` with what it
            imports, einops too: VirNucPro's setting is measured on it as well. For `dnabert_s`.
        output: JSON file for all figures; an earlier one is replaced.

    Raises:
        UsageError: If an option makes no sense, or there is no such package.
        OutputError: If the JSON file cannot be written after all.
    """
    _check_model(model, esm2, workload)
    _check_numbers(seconds, tokens_per_batch, num_workers, devices)
    if not 0 <= duplicates < 1:
        raise UsageError("--duplicates is a share, from 0 to less than 1")
    if authors_code is not None and (model != DNA or devices or not peers):
        raise UsageError(
            "--authors_code is for --model dnabert_s, with --peers true and without --devices"
        )
    check_figures_file(output, [Path(workload)], _KEYS)
    theirs = None if authors_code is None else import_authors_code(authors_code)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not cores.IS_CHOSEN:
        torch.set_num_threads(cores.share_of_rank(1))
    with tempfile.TemporaryDirectory(prefix="virnucpro-pl-bench-") as scratch:
        name = esm2 if model == FUSED else model
        case = Case(name, [], seconds, tokens_per_batch, num_workers, device, Path(scratch))
        sample = draw(workload, case.embedder(), case.scratch)
        case = case._replace(sample=sample, duplicates=duplicates)
        if model == FUSED:
            rows, runs = _measure_both(case, devices, peers)
        else:
            rows, runs = _measure(case, devices, peers, theirs)
    _print(rows, f"{model}, {workload}, on {device}")
    _print_processes(runs)
    asked = {"model": model, "workload": workload, "authors_code": authors_code}
    write_figures(output, asked | _figures(case, rows, runs))
    log.info("Wrote %s", output)


def _check_model(model: str, esm2: str, workload: str) -> None:
    for option, name, names in (
        ("--model", model, (FUSED, DNA, *SIZES)),
        ("--esm2", esm2, tuple(SIZES)),
    ):
        if name not in names:
            raise UsageError(f"{option} must be one of {', '.join(names)}, not {name}")
    if model == FUSED and workload != "500-base":
        raise UsageError("--model virnucpro is measured on 500-base only")


def _check_numbers(seconds: float, tokens_per_batch: int, num_workers: int, devices: int) -> None:
    gpus = torch.cuda.device_count()
    if seconds <= 0 or tokens_per_batch < 1:
        raise UsageError("--seconds and --tokens_per_batch are above 0")
    if num_workers < 0 or devices < 0:
        raise UsageError("--num_workers and --devices are at least 0")
    if gpus and devices > gpus:
        raise UsageError(f"--devices {devices}, but there are {gpus} GPUs")


def _measure(
    case: Case, devices: int, peers: bool, authors_code: ModuleType | None
) -> tuple[list[Row], list[ProcessRow]]:
    """Measure one encoder: in processes on so many devices, or in this one beside its peers."""
    alone = encoder_alone(case)
    rate = alone.sequences_per_second
    if devices:
        return [alone], list(processes(case, devices, rate))
    rows = [alone, end_to_end(case, rate), tokenising(case)]
    return [*rows, *(measure_peers(case, authors_code) if peers else [])], []


def _measure_both(case: Case, devices: int, peers: bool) -> tuple[list[Row], list[ProcessRow]]:
    """Measure VirNucPro and its encoders, likewise."""
    genes = draw_genes()
    alone = encoders_alone(case, genes)
    rate = 1 / sum(1 / row.sequences_per_second for row in alone)
    if devices:
        return alone, list(processes(case._replace(sample=genes), devices, rate, with_dna=True))
    return [*alone, fused(case, genes, rate), *six_frames(case, peers)], []


def _figures(case: Case, rows: list[Row], runs: list[ProcessRow]) -> dict[str, Any]:
    def known(row: Row | ProcessRow) -> dict[str, Any]:
        """Without what was not measured: JSON knows no NaN."""
        return {name: None if value != value else value for name, value in row._asdict().items()}

    return {
        "seconds": case.seconds,
        "tokens_per_batch": case.budget,
        "num_workers": case.workers,
        "duplicates": case.duplicates,
        "device": torch.cuda.get_device_name() if case.cuda else "cpu",
        "torch_version": str(torch.__version__),
        "rows": [known(row) for row in rows],
        "processes": [known(row) for row in runs],
    }


def _print(rows: list[Row], title: str) -> None:
    table = Table(title=title)
    table.add_column("")
    for column in ("tokens/s", "sequences/s", "GiB", "warm-up s", "over limit", "ours over it"):
        table.add_column(column, justify="right")
    ours = next((r.tokens_per_second for r in rows if "end to end" in r.name), math.nan)
    for row in rows:
        figures = (
            f"{row.tokens_per_second:,.0f}",
            f"{row.sequences_per_second:,.0f}",
            f"{row.gib:.1f}",
            f"{row.warm_up_seconds:.1f}",
            f"{row.over_limit:.3f}",
            f"{ours / row.tokens_per_second:.2f}",
        )
        table.add_row(row.name, *("" if figure == "nan" else figure for figure in figures))
    Console(file=sys.stdout, width=120).print(table)


def _print_processes(runs: list[ProcessRow]) -> None:
    if not runs:
        return
    table = Table(title="the command as a process")
    for name in ProcessRow._fields:
        table.add_column(name.replace("_", " ").removesuffix(" seconds"), justify="right")
    for run in runs:
        devices, speed, *others = run
        table.add_row(str(devices), f"{speed:,.0f}", *(f"{other:.3g}" for other in others))
    Console(file=sys.stdout, width=120).print(table)
