"""The command as users start it: from the command to its first pack, and on several GPUs."""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from virnucpro_pl.bench.agreement import scores_apart, vectors_apart
from virnucpro_pl.bench.case import DNA, FEWEST, Case, write_fasta
from virnucpro_pl.errors import OutputError
from virnucpro_pl.models.esm2_files import fair_esm_names

log = logging.getLogger(__name__)

_IMPORT = """
import gc
gc.disable()
from virnucpro_pl.cli.main import load_with_lightning
load_with_lightning("virnucpro_pl.cli.predict:predict")
"""
"""What the command does before it reads its options."""


class ProcessRow(NamedTuple):
    """One run of the command on so many devices."""

    devices: int
    tokens_per_second: float
    """Of all, after each rank's first pack, the merge included."""
    scaling: float
    """Over one device."""
    to_first_pack_seconds: float
    """From the command to the weights on every device and the first pack there."""
    over_read_and_copy: float
    """That time over the time to read the weights file and copy it to one device."""
    import_seconds: float
    """Of a process that imports what the command does, Lightning and PyTorch with it, and ends."""
    first_pack_seconds: float
    """Compilation included."""
    merge_seconds: float
    host_gib: float
    """Peak memory of all processes, pages that they share counted once."""
    largest_difference: float
    """Between the vectors of this run and those of one device, rows that both have; of VirNucPro
    between the scores."""


def processes(
    case: Case, devices: int, rate: float, *, with_dna: bool = False
) -> Iterator[ProcessRow]:
    """Run the command on one device, then on several, each with the same work.

    Args:
        case: What is measured.
        devices: The largest number.
        rate: Sequences per second of one device, to know how many make a run of the wanted length.
        with_dna: Whether to run all of VirNucPro, with the ESM-2 of the case.

    Raises:
        OutputError: If a run fails, or its rows are not those of the input.
    """
    weights = "random" if case.model == DNA else str(write_weights(case))
    floor = float("nan") if weights == "random" else read_and_copy(case, Path(weights))
    share = max(FEWEST, int(rate * case.seconds / (1 - case.duplicates)))
    apart = scores_apart if with_dna else vectors_apart
    alone: ProcessRow | None = None
    for count in sorted({1, devices}):
        records = share * count
        path = case.scratch / f"{count}.fasta"
        fasta = write_fasta(path, case.sample, records, case.duplicates)
        output, first = (case.scratch / (f"{n}" if with_dna else f"{n}.h5") for n in (count, 1))
        options = _model_options(case, weights, with_dna) | _options(case, fasta, output, count)
        importing = time_import()
        launched = time.time()
        host_gib = _run(_words(options))
        report = json.loads(output.with_name(f"{output.name}.run.json").read_text())
        phases = report["seconds"]
        began = datetime.fromisoformat(report["started"]).timestamp()
        to_first = began - launched + phases["prepare"]
        tokens = report["tokens_per_second"] * phases["compute"]
        speed = tokens / (phases["compute"] + phases["merge"])
        row = ProcessRow(
            count,
            speed,
            speed / alone.tokens_per_second if alone else 1.0,
            to_first,
            to_first / floor,
            importing,
            phases["first pack"],
            phases["merge"],
            host_gib,
            apart(first, output, records),
        )
        log.info("%s", row)
        alone = alone or row
        yield row


def _model_options(case: Case, weights: str, with_dna: bool) -> dict[str, Any]:
    """The config, and what the model is."""
    if with_dna:
        return {
            "config": "virnucpro.yaml",
            "model.esm2.name": case.model,
            "model.esm2.weights": weights,
            "model.dnabert_s.weights": "random",
            "model.dnabert_s.tokenizer": case.tokenizer,
            "model.classifier": "random",
        }
    if case.model == DNA:
        named = {"config": "dnabert_s.yaml", "model.tokenizer": case.tokenizer}
    else:
        named = {"config": "esm2.yaml", "model.name": case.model}
    return {**named, "model.weights": weights}


def _options(case: Case, fasta: Path, output: Path, devices: int) -> dict[str, Any]:
    """What is read and written, and on how many devices."""
    options: dict[str, Any] = {
        "data.path": fasta,
        "data.tokens_per_batch": case.budget,
        "data.num_workers": case.workers,
        "writer.path": output,
        "trainer.devices": devices,
        "trainer.accelerator": "gpu" if case.cuda else "cpu",
    }
    return options | ({"trainer.strategy": "ddp"} if devices > 1 else {})


def _words(options: dict[str, Any]) -> list[str]:
    flags = [f"--{name}={value}" for name, value in options.items()]
    return [sys.executable, "-m", "virnucpro_pl", "predict", *flags]


def _run(words: list[str]) -> float:
    """Run a command to its end; return the peak GiB of all of its processes together."""
    peak = 0
    with subprocess.Popen(words, start_new_session=True) as process:
        while process.poll() is None:
            peak = max(peak, _proportional_bytes(process.pid))
            time.sleep(0.5)
    if process.returncode:
        raise OutputError(f"This ended with exit code {process.returncode}: {' '.join(words)}")
    return peak / 2**30


def _proportional_bytes(session: int) -> int:
    """Memory of a session's processes, a page shared by n of them counted 1/n in each."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) == session:
                lines = (folder / "smaps_rollup").read_text().splitlines()
                total += sum(1024 * int(s.split()[1]) for s in lines if s.startswith("Pss:"))
        except OSError:  # it has ended meanwhile
            continue
    return total


def write_weights(case: Case) -> Path:
    """Write random weights in half, as fair-esm publishes them."""
    path = case.scratch / f"{case.model}.pt"
    encoder, _ = case.embedder().load_encoder(None, torch.device("cpu"), torch.float16)
    tensors = {}
    for name, parameter in encoder.named_parameters():
        theirs = fair_esm_names(name)
        for their, piece in zip(theirs, parameter.chunk(len(theirs)), strict=True):
            tensors[f"encoder.sentence_encoder.{their}"] = piece.half().clone()
    layers, width, heads = encoder.config[:3]
    model = argparse.Namespace(
        encoder_layers=layers,
        encoder_embed_dim=width,
        encoder_attention_heads=heads,
        token_dropout=True,
    )
    torch.save({"cfg": {"model": model}, "model": tensors}, path)
    return path


def read_and_copy(case: Case, path: Path) -> float:
    """Seconds to read a file that lies in the page cache and to copy it to the device."""
    torch.empty(1, device=case.device)  # not the time to wake the device
    path.read_bytes()
    began = time.perf_counter()
    torch.from_numpy(np.fromfile(path, np.uint8)).to(case.device)
    case.wait()
    return time.perf_counter() - began


def time_import() -> float:
    """Seconds of a process that imports what the command does, Lightning with it, and ends."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", _IMPORT], check=True)
    return time.perf_counter() - began
