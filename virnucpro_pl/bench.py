"""`virnucpro-pl bench`: this program, its peers and the hardware's limit, side by side in one run.

All weights are random, of the real sizes. The limit is the time of the encoder's matrix products
alone; since cards throttle under load, it is measured before and after everything else.
"""

from __future__ import annotations

import json
import logging
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from virnucpro_pl.embedder import DNABERTSEmbedder, ESM2Embedder
from virnucpro_pl.models.esm2 import SIZES
from virnucpro_pl.output.streaming import StreamingWriter
from virnucpro_pl.output.table_writer import TableWriter
from virnucpro_pl.output.writer import HDF5Writer
from virnucpro_pl.sequence_embedder import SequenceEmbedder
from virnucpro_pl.sequences.contigs import ContigDataModule
from virnucpro_pl.sequences.datamodule import SequenceDataModule
from virnucpro_pl.sequences.tokens import PackedBatch, pack
from virnucpro_pl.virnucpro import VirNucPro

__all__ = ["bench"]

log = logging.getLogger(__name__)

Workload = Literal["500-base", "proteome"]
ORIGINAL_TOKENS = 2048
"""Tokens of a batch in VirNucPro's own setting (Li et al. 2025)."""
PEER_TOKENS = 32_768
_SAMPLE = 4096


class Row(NamedTuple):
    """One line of the result."""

    name: str
    tokens_per_second: float
    sequences_per_second: float
    gib: float
    """Peak GPU memory."""
    warm_up_seconds: float
    """First pass, compilation included."""
    over_limit: float
    """tokens_per_second over that of the matrix products alone, measured around it."""


def bench(
    model: str = "esm2_t36_3B_UR50D",
    workload: Workload = "500-base",
    seconds: float = 30.0,
    tokens_per_batch: int = 32_768,
    num_workers: int = 1,
    peers: bool = True,
    output: Path = Path("bench.json"),
) -> None:
    """Measure this program, its peers and the hardware's limit in one run, on random weights.

    Args:
        model: `virnucpro`, `dnabert_s`, or the name of an ESM-2 such as esm2_t36_3B_UR50D.
        workload: `500-base` (166 residues, or 500 bases of DNA) or `proteome` (log-normal lengths,
            30 to 1022 residues).
        seconds: Length of the run end to end; everything else takes a third of it.
        tokens_per_batch: Tokens of a pack.
        num_workers: DataLoader processes.
        peers: Whether to measure fair-esm, transformers and VirNucPro's own setting as well.
        output: JSON file for all figures.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory(prefix="virnucpro-pl-bench-") as scratch:
        options = (seconds, tokens_per_batch, num_workers, device, Path(scratch))
        if model == "virnucpro":
            rows = list(fused(*options))
        else:
            rows = list(Run(model, workload, *options).rows(peers))
    _print(rows, f"{model} on {device}")
    content = {
        "model": model,
        "workload": workload,
        "tokens_per_batch": tokens_per_batch,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch_version": str(torch.__version__),
        "rows": [row._asdict() for row in rows],
    }
    output.write_text(json.dumps(content, indent=2) + "\n")
    log.info("Wrote %s", output)


class Run:
    """One benchmark: the workload, and the ways of doing it."""

    def __init__(
        self,
        model: str,
        workload: Workload,
        seconds: float,
        budget: int,
        workers: int,
        device: torch.device,
        scratch: Path,
    ) -> None:
        """Draw the workload's sequences.

        Args:
            model: Name of the model.
            workload: Kind of sequences.
            seconds: Length of the run end to end.
            budget: Tokens of a pack.
            workers: DataLoader processes.
            device: Where to measure.
            scratch: Folder for input and output.
        """
        self.dna = model == "dnabert_s"
        self.model = model
        self.seconds = seconds
        self.budget = budget
        self.workers = workers
        self.device = device
        self.scratch = scratch
        self.sample = draw(workload, dna=self.dna)
        self.dtype = torch.float16 if device.type == "cuda" else torch.float32

    def rows(self, peers: bool) -> Iterator[Row]:
        """Measure one way after the other."""
        alone = self.encoder_alone()
        yield alone
        yield self.end_to_end(alone.sequences_per_second)
        if not peers:
            return
        if self.dna:
            yield self.one_at_a_time()
            return
        if self.device.type == "cuda":
            yield self.fair_esm("fair-esm, half", PEER_TOKENS, torch.float16)
            yield self.transformers()
        yield self.fair_esm("VirNucPro's setting: fair-esm, fp32", ORIGINAL_TOKENS, torch.float32)

    def embedder(self, **options: Any) -> SequenceEmbedder:
        """This program's module, with random weights."""
        if self.dna:
            return DNABERTSEmbedder(weights="random", **options)
        return ESM2Embedder(self.model, weights="random", **options)

    def end_to_end(self, rate: float) -> Row:
        """`Trainer.predict` from a FASTA file to a finished HDF5 file."""
        fasta = self.write_input(self.sample, max(len(self.sample), int(rate * self.seconds)))
        return self.predict(
            "virnucpro-pl, end to end",
            self.embedder(compile=self.device.type == "cuda"),
            SequenceDataModule(fasta, self.budget, self.workers),
            HDF5Writer(self.scratch / "out"),
        )

    def write_input(self, sample: list[bytes], count: int) -> Path:
        """A FASTA file of so many records, taken from a sample in turn."""
        path = self.scratch / "input.fasta"
        with path.open("w") as file:
            file.writelines(f">{i}\n{sample[i % len(sample)].decode()}\n" for i in range(count))
        return path

    def predict(
        self, name: str, model: LightningModule, data: SequenceDataModule, writer: StreamingWriter
    ) -> Row:
        """One whole run; its first pack, compilation included, is timed apart."""
        trainer = Trainer(
            accelerator="auto",
            devices=1,
            precision="16-mixed",
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            callbacks=[writer],
        )
        with self.measured() as state:
            trainer.predict(model, data)
        report = json.loads(writer.path.with_name(f"{writer.path.name}.run.json").read_text())
        phases, totals = report["seconds"], report["totals"]
        log.info("Phases end to end: %s", phases)
        tokens = min(report["tokens_per_second"] * phases["compute"], totals["tokens"])
        records = totals["records"] * tokens / totals["tokens"]
        took = phases["compute"] + phases["merge"]
        return self.row(name, tokens, records, took, phases["first pack"], state)

    def encoder_alone(self) -> Row:
        """This program's encoder on one pack that lies on the device already."""
        embedder = self.embedder()
        batch = self.pack(embedder)
        embedder.encoder, _ = embedder.load_encoder(None, self.device, self.dtype)
        backend = "triton" if self.device.type == "cuda" else "sdpa"
        if self.device.type == "cuda":
            embedder.encoder.compile()
        fill = self.budget if self.device.type == "cuda" else 0

        def step() -> Tensor:
            out: Tensor = embedder.encoder(
                batch.tokens, batch.cu_seqlens, batch.max_seqlen, backend, None, fill
            )
            return out

        with self.measured() as state:
            took, warm_up = self.repeat(step)
        return self.row(
            "virnucpro-pl, encoder alone", len(batch.tokens), len(batch.rows), took, warm_up, state
        )

    def pack(self, embedder: SequenceEmbedder) -> PackedBatch:
        """One full pack of the workload, on the device."""
        tokens, counts = embedder.tokenizer.encode(self.sample)
        del tokens
        n = max(1, int(np.searchsorted(np.cumsum(counts), self.budget, side="right")))
        rows = np.arange(n) % len(self.sample)
        if int(counts.sum()) < self.budget:  # a small sample fills a large pack by repetition
            rows = np.arange(int(self.budget // counts.mean())) % len(self.sample)
            rows = rows[: int(np.searchsorted(np.cumsum(counts[rows]), self.budget, side="right"))]
        sequences = [self.sample[row] for row in rows]
        ids = [str(row) for row in rows]
        return pack(np.arange(len(rows)), ids, sequences, embedder.tokenizer).to(self.device)

    def fair_esm(self, name: str, budget: int, dtype: torch.dtype) -> Row:
        """fair-esm's own class on padded batches, sorted by length as its loader does."""
        from esm.model.esm2 import ESM2

        config = SIZES[self.model]
        with torch.device(self.device):
            network = ESM2(config.layers, config.width, config.heads).to(dtype).eval()
        return self.padded(
            name, budget, lambda tokens: network(tokens, repr_layers=[config.layers])
        )

    def transformers(self) -> Row:
        """Transformers' EsmModel in half precision with SDPA, on padded batches."""
        from transformers import EsmConfig, EsmModel

        config = SIZES[self.model]
        esm = EsmConfig(
            vocab_size=33,
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=4 * config.width,
            position_embedding_type="rotary",
            token_dropout=True,
            emb_layer_norm_before=False,
            mask_token_id=32,
            pad_token_id=1,
        )
        esm._attn_implementation = "sdpa"
        with torch.device(self.device):
            network: nn.Module = EsmModel(esm, add_pooling_layer=False)
        network.to(self.dtype).eval()
        return self.padded(
            "transformers, half, SDPA",
            PEER_TOKENS,
            lambda tokens: network(tokens, attention_mask=tokens != 1),
        )

    def padded(self, name: str, budget: int, forward: Callable[[Tensor], Any]) -> Row:
        """A peer on padded batches of at most `budget` places, for a third of the time."""
        tokenizer = ESM2Embedder(self.model, weights="random").tokenizer
        batches = list(_padded_batches(tokenizer, self.sample, budget))
        tokens = sequences = 0
        with self.measured() as state, torch.inference_mode():
            began = time.perf_counter()
            forward(batches[0].to(self.device))
            self.wait()
            warm_up = time.perf_counter() - began
            began = time.perf_counter()
            order = np.random.default_rng(0).permutation(len(batches))  # lengths mixed in time
            for index in np.tile(order, 1 + int(1e6 // len(batches))):
                batch = batches[index]
                forward(batch.to(self.device))
                self.wait()
                tokens += int((batch != 1).sum())
                sequences += len(batch)
                took = time.perf_counter() - began
                if took > self.seconds / 3:
                    break
        return self.row(name, tokens, sequences, took, warm_up, state)

    def one_at_a_time(self) -> Row:
        """VirNucPro's setting for DNABERT-S: fp32, one sequence at a time, on this network."""
        embedder = self.embedder()
        embedder.encoder, _ = embedder.load_encoder(None, self.device, torch.float32)
        batches = [
            pack(np.zeros(1, np.int64), ["0"], [s], embedder.tokenizer).to(self.device)
            for s in self.sample[:200]
        ]
        tokens = sequences = 0
        with self.measured() as state, torch.inference_mode():
            embedder.encoder(batches[0].tokens, batches[0].cu_seqlens, batches[0].max_seqlen)
            self.wait()
            began = time.perf_counter()
            while (took := time.perf_counter() - began) < self.seconds / 3:
                batch = batches[sequences % len(batches)]
                embedder.encoder(batch.tokens, batch.cu_seqlens, batch.max_seqlen)
                self.wait()
                tokens += len(batch.tokens)
                sequences += 1
        name = "VirNucPro's setting: fp32, one sequence at a time (this network)"
        return self.row(name, tokens, sequences, took, 0.0, state)

    def repeat(self, step: Callable[[], Any]) -> tuple[float, float]:
        """Median seconds of a step over a third of the time, and of the first step."""
        with torch.inference_mode(), torch.autocast(self.device.type, self.autocast):
            began = time.perf_counter()
            step()
            self.wait()
            warm_up = time.perf_counter() - began
            times: list[float] = []
            while sum(times) < self.seconds / 3 or len(times) < 3:
                began = time.perf_counter()
                step()
                self.wait()
                times.append(time.perf_counter() - began)
        return statistics.median(times), warm_up

    @property
    def autocast(self) -> torch.dtype:
        """What 16-mixed computes in on this device."""
        return torch.float16 if self.device.type == "cuda" else torch.bfloat16

    @contextmanager
    def measured(self) -> Iterator[dict[str, float]]:
        """Measure the limit before and after, and the peak memory in between."""
        state = {"limit": self.limit()}
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        yield state
        if self.device.type == "cuda":
            state["gib"] = torch.cuda.max_memory_allocated() / 2**30
            torch.cuda.empty_cache()
        state["limit"] = (state["limit"] + self.limit()) / 2

    def limit(self) -> float:
        """Tokens per second of the matrix products alone, at the model's own shapes."""
        layers, products = self.products()
        tokens = 16_384 if self.device.type == "cuda" else 512
        inputs = {
            i: torch.randn(tokens, i, device=self.device, dtype=self.dtype) for i, _ in products
        }
        weights = [torch.randn(o, i, device=self.device, dtype=self.dtype) for i, o in products]

        def step() -> None:
            for _ in range(layers):
                for weight in weights:
                    F.linear(inputs[weight.shape[1]], weight)

        with torch.inference_mode():
            step()
            self.wait()
            times: list[float] = []
            while sum(times) < min(2.0, self.seconds / 10) or len(times) < 3:
                began = time.perf_counter()
                step()
                self.wait()
                times.append(time.perf_counter() - began)
        return tokens / statistics.median(times)

    def products(self) -> tuple[int, list[tuple[int, int]]]:
        """Layers, and (inputs, outputs) of each matrix product of one."""
        if self.dna:
            return 12, [(768, 2304), (768, 768), (768, 6144), (3072, 768)]
        d = SIZES[self.model].width
        return SIZES[self.model].layers, [(d, 3 * d), (d, d), (d, 4 * d), (4 * d, d)]

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def row(
        self,
        name: str,
        tokens: float,
        sequences: float,
        took: float,
        warm_up: float,
        state: dict[str, float],
    ) -> Row:
        """Make a line of the result, and log it."""
        rate = tokens / took
        row = Row(
            name,
            rate,
            sequences / took,
            state.get("gib", math.nan),
            warm_up,
            rate / state["limit"],
        )
        log.info("%s: %.0f tokens/s, %.3f of the limit", name, rate, row.over_limit)
        return row


def fused(
    seconds: float, budget: int, workers: int, device: torch.device, scratch: Path
) -> Iterator[Row]:
    """VirNucPro in one pass beside both of its encoders alone, for the same ORFs."""
    esm2 = Run("esm2_t36_3B_UR50D", "500-base", seconds, budget, workers, device, scratch)
    dnabert_s = Run("dnabert_s", "500-base", seconds, budget, workers, device, scratch)
    alone = [run.encoder_alone()._replace(name=f"{run.model}, alone") for run in (esm2, dnabert_s)]
    yield from alone
    rate = 1 / sum(1 / row.sequences_per_second for row in alone)
    contigs = esm2.write_input(draw_genes(), max(_SAMPLE // 8, int(rate * seconds)))
    compiled = device.type == "cuda"
    yield esm2.predict(
        f"virnucpro-pl, end to end; both encoders' own times allow {rate:,.0f} sequences/s",
        VirNucPro(
            ESM2Embedder(weights="random", compile=compiled),
            DNABERTSEmbedder(weights="random", compile=compiled),
            "random",
        ),
        ContigDataModule(contigs, tokens_per_batch=budget, num_workers=workers),
        TableWriter(scratch / "tables"),
    )


def draw_genes() -> list[bytes]:
    """Random chunks of 500 bases with an open first frame; the others have stops, as a rule."""
    generator = np.random.default_rng(0)
    codons = [a + b + c for a, b, c in product("ACGT", repeat=3)]
    sense = [codon for codon in codons if codon not in ("TAA", "TAG", "TGA")]
    return ["".join([*generator.choice(sense, 166), "AC"]).encode() for _ in range(_SAMPLE // 8)]


def draw(workload: Workload, *, dna: bool) -> list[bytes]:
    """Random sequences of a workload, always the same."""
    generator = np.random.default_rng(0)
    letters = np.frombuffer(b"ACGT" if dna else b"LAGVSERTIDPKQNFYMHWC", np.uint8)
    if workload == "proteome":
        lengths = np.exp(generator.normal(5.6, 0.7, _SAMPLE)).astype(int).clip(30, 1022)
    else:
        lengths = np.full(_SAMPLE, 500 if dna else 166)
    return [generator.choice(letters, length).tobytes() for length in lengths]


def _padded_batches(tokenizer: Any, sample: list[bytes], budget: int) -> Iterator[Tensor]:
    """Batches (n, L) of at most `budget` places, of sequences sorted by length."""
    waiting: list[Tensor] = []
    for sequence in sorted(sample, key=len):
        tokens, _ = tokenizer.encode([sequence])
        if (len(waiting) + 1) * len(tokens) > budget and waiting:
            yield torch.nn.utils.rnn.pad_sequence(waiting, batch_first=True, padding_value=1)
            waiting = []
        waiting.append(torch.from_numpy(tokens))
    yield torch.nn.utils.rnn.pad_sequence(waiting, batch_first=True, padding_value=1)


def _print(rows: list[Row], title: str) -> None:
    table = Table(title=title)
    table.add_column("")
    for column in ("tokens/s", "sequences/s", "GiB", "warm-up s", "over limit", "ours over it"):
        table.add_column(column, justify="right")
    ours = next(row for row in rows if "end to end" in row.name).tokens_per_second
    for row in rows:
        table.add_row(
            row.name,
            f"{row.tokens_per_second:,.0f}",
            f"{row.sequences_per_second:,.0f}",
            f"{row.gib:.1f}",
            f"{row.warm_up_seconds:.1f}",
            f"{row.over_limit:.3f}",
            f"{ours / row.tokens_per_second:.2f}",
        )
    Console(file=sys.stdout, width=120).print(table)
