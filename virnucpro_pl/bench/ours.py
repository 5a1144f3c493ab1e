"""This program: its encoder alone, and end to end."""

from __future__ import annotations

import json
import logging
import statistics
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from virnucpro_pl import devices
from virnucpro_pl.bench.case import DNA, FEWEST, Case, write_fasta
from virnucpro_pl.bench.meter import Row, measured, repeat
from virnucpro_pl.input.contig_datamodule import ContigDataModule
from virnucpro_pl.input.sequence_datamodule import SequenceDataModule
from virnucpro_pl.models.attention import choose_attention
from virnucpro_pl.output.hdf5_writer import HDF5Writer
from virnucpro_pl.output.streaming_writer import StreamingWriter
from virnucpro_pl.output.table_writer import TableWriter
from virnucpro_pl.precision import should_use_fp16
from virnucpro_pl.predict.embedders import DNABERTSEmbedder, ESM2Embedder
from virnucpro_pl.predict.virnucpro import VirNucPro

log = logging.getLogger(__name__)


def encoder_alone(case: Case, name: str = "virnucpro-pl, encoder alone") -> Row:
    """The encoder on one pack that lies on the device already."""
    embedder = case.embedder()
    batch = case.full_pack(embedder)
    encoder, _ = embedder.load_encoder(None, case.device, case.dtype)
    # What 16-mixed computes in.
    reduced = torch.float16 if case.cuda else torch.bfloat16
    is_reduced = should_use_fp16() and (case.cuda or devices.has_bf16_units())
    backend = choose_attention(
        "auto", device=case.device, reduced=is_reduced, biased=embedder.biased
    )
    fused = backend != "sdpa"

    def step() -> None:
        encoder(batch.tokens, batch.cu_seqlens, batch.max_seqlen, backend, None, fused)

    with (
        measured(case) as timed,
        torch.inference_mode(),
        torch.autocast(case.device.type, reduced, enabled=is_reduced),
    ):
        timed.warm_up, times = repeat(case, step, min(case.seconds / 3, 10.0))
        timed.seconds = statistics.median(times)
        timed.tokens, timed.sequences = len(batch.tokens), len(batch.rows)
    return timed.row(name)


def end_to_end(case: Case, rate: float) -> Row:
    """`Trainer.predict` from a FASTA file to a finished HDF5 file.

    Args:
        case: What is measured.
        rate: Sequences per second of the encoder, to know how many make a run of the wanted length.
    """
    count = max(FEWEST, int(rate * case.seconds / (1 - case.duplicates)))
    fasta = write_fasta(case.scratch / "input.fasta", case.sample, count, case.duplicates)
    data = SequenceDataModule(fasta, case.budget, case.workers)
    writer = HDF5Writer(case.scratch / "out.h5")
    embedder = case.embedder()
    return _predict(case, "virnucpro-pl, end to end", embedder, data, writer)


def encoders_alone(case: Case, genes: list[bytes]) -> list[Row]:
    """Both encoders of VirNucPro, for the same ORFs."""
    return [
        encoder_alone(case, f"{case.model}, encoder alone"),
        encoder_alone(case._replace(model=DNA, sample=genes), f"{DNA}, encoder alone"),
    ]


def fused(case: Case, genes: list[bytes], rate: float) -> Row:
    """VirNucPro in one pass, of genes.

    Args:
        case: What is measured.
        genes: Nucleotides of ORFs.
        rate: Sequences per second that both encoders' own times allow.
    """
    count = max(FEWEST, int(rate * case.seconds / (1 - case.duplicates)))
    return _predict(
        case,
        f"virnucpro-pl, end to end; both encoders' own times allow {rate:,.0f} sequences/s",
        VirNucPro(
            ESM2Embedder(case.model, weights="random"),
            DNABERTSEmbedder(weights="random", tokenizer=str(case.tokenizer)),
            "random",
        ),
        ContigDataModule(
            write_fasta(case.scratch / "input.fasta", genes, count, case.duplicates),
            tokens_per_batch=case.budget,
            num_workers=case.workers,
        ),
        TableWriter(case.scratch / "tables"),
    )


def _predict(
    case: Case, name: str, model: LightningModule, data: Any, writer: StreamingWriter
) -> Row:
    """One whole run; its first pack, compilation included, is timed apart."""
    trainer = Trainer(
        accelerator=case.device.type,
        devices=1,
        precision="16-mixed",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        callbacks=[writer],
    )
    with measured(case) as timed:
        trainer.predict(model, data)
    report = json.loads(writer.path.with_name(f"{writer.path.name}.run.json").read_text())
    phases, totals = report["seconds"], report["totals"]
    log.info("Phases end to end: %s", phases)
    timed.tokens = min(report["tokens_per_second"] * phases["compute"], totals["tokens"])
    timed.sequences = totals["records"] * timed.tokens / totals["tokens"]
    timed.seconds = phases["compute"] + phases["merge"]
    timed.warm_up = phases["first pack"]
    return timed.row(name)
