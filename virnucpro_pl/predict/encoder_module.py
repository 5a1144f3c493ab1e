"""A module with one encoder: which weights it has, and when and where they are loaded."""

from __future__ import annotations

import logging
import os
import time
from abc import abstractmethod
from concurrent.futures import Future
from pathlib import Path
from typing import ClassVar

import torch

from virnucpro_pl.contracts import source_of
from virnucpro_pl.errors import UsageError
from virnucpro_pl.models.attention import (
    Attention,
    BiasedAttention,
    check_attention,
    check_device,
    choose_attention,
)
from virnucpro_pl.models.dnabert_s import DNABERTS, DNABERTSConfig
from virnucpro_pl.models.download import SEED, hash_files, recorded_hash
from virnucpro_pl.models.esm2 import ESM2, ESM2Config
from virnucpro_pl.precision import unify_precision
from virnucpro_pl.predict.predict_module import PredictModule

log = logging.getLogger(__name__)

_MATRIX_DTYPES = {
    "16-mixed": torch.float16,
    "16-true": torch.float16,
    "bf16-mixed": torch.bfloat16,
    "bf16-true": torch.bfloat16,
    "64-true": torch.float64,
}
"""Linear layers are kept in the dtype that they compute in: autocast would make the same cast of
the same numbers at every step, from twice the memory."""


class EncoderModule(PredictModule):
    """Finds weights on rank 0 before any rank works, and loads them on every rank.

    A subclass says which weights and which network.

    Attributes:
        name: What messages and outputs call the model; that of its sizes once they are known.
        biased: Whether attention scores have a bias.
        encoder: The network, from `configure_model` on.
        attention_used: The attention backend, from `configure_model` on.
        is_found: Whether the weights are found, or are random; on rank 0.
    """

    biased: ClassVar[bool] = False
    encoder: ESM2 | DNABERTS
    attention_used: str

    def __init__(
        self,
        name: str,
        *,
        layer: int | None,
        enable_fp16: bool,
        attention: Attention | BiasedAttention,
    ) -> None:
        """Keep the options of an embedder; `name` is the model's until its sizes are known."""
        super().__init__()
        check_attention(attention, biased=self.biased)
        self.name = name
        self.layer = layer
        self.enable_fp16 = enable_fp16
        self.attention = attention
        self._found: Path | None = None
        self._fault: UsageError | None = None
        self.is_found = False
        self._looked_at: tuple[ESM2Config | DNABERTSConfig, list[Path]] | None = None
        self._loaded: tuple[Path | None, torch.device, torch.dtype] | None = None
        self._hash: Future[str] | None = None

    @abstractmethod
    def find_weights(self) -> Path | None:
        """Find (or download) the weights; None for random ones. Called on rank 0."""

    @abstractmethod
    def load_encoder(
        self, path: Path | None, device: torch.device, matrix_dtype: torch.dtype
    ) -> tuple[ESM2 | DNABERTS, list[Path]]:
        """Load the network; return it and the files it came from."""

    @property
    @abstractmethod
    def expected_sizes(self) -> ESM2Config | DNABERTSConfig | None:
        """Sizes that are sure before the weights are found; None if theirs count."""

    def look_at(self, config: ESM2Config | DNABERTSConfig, files: list[Path]) -> None:
        """Keep what the weights found are, before they are loaded, and learn their name."""
        self.name, self._looked_at = config.name, (config, files)

    @property
    def sizes(self) -> ESM2Config | DNABERTSConfig | None:
        """Sizes of the network, as soon as they are sure; on rank 0."""
        return self._looked_at[0] if self._looked_at else self.expected_sizes

    def identity(self) -> dict[str, str | None]:
        """What its vectors depend on, as files' attributes say it; None for what is not known yet.

        To be asked on rank 0.
        """
        sizes = self.sizes
        layer = sizes.layers if sizes and self.layer is None else self.layer
        return {
            "model": sizes and sizes.name,
            "weights_sha256": self._known_hash(),
            "layer": None if layer is None else str(layer),
        }

    def _known_hash(self) -> str | None:
        """Content hash of the weights, where nobody has to wait for it."""
        if not self.is_found:
            return None
        if self.is_hashed:
            return self.weights_sha256
        if self._found is None:
            return self._random_hash
        return recorded_hash(self._looked_at[1]) if self._looked_at else None

    @property
    def is_hashed(self) -> bool:
        """Whether the weights found are loaded, and their hash is there; on rank 0."""
        is_loaded = self._loaded is not None and self._loaded[0] == self._found
        return is_loaded and (self._hash is None or self._hash.done())

    def prepare_data(self) -> None:
        """Find the weights on rank 0, for a device that can run what is asked for.

        A fault is kept for all ranks to raise in setup.
        """
        self._fault, self._looked_at, self.is_found = None, None, False
        data = source_of(self.trainer)
        if data is not None and data.fault is not None:
            return  # nothing will be computed: no download of 12 GB first
        try:
            check_device(self.attention, self.trainer.strategy.root_device)
            self._found = self.find_weights()
            self.is_found = True
        except UsageError as error:
            self._fault = error

    def setup(self, stage: str) -> None:
        """Tell every rank where the weights are.

        Raises:
            UsageError: On every rank, what rank 0 found in `prepare_data`.
        """
        outcome = self.trainer.strategy.broadcast(self._fault or self._found)
        if isinstance(outcome, UsageError):
            raise outcome
        self._found = outcome

    def configure_model(self) -> None:
        """Load the weights straight to the device, in the dtype they compute in.

        Those that an earlier Trainer has loaded stay if they are the same.
        """
        device = self.trainer.strategy.root_device
        wanted = self._found, device, self._matrix_dtype
        if self._loaded != wanted:
            began = time.monotonic()
            self.encoder, files = self.load_encoder(*wanted)
            self._loaded = wanted
            self._hash = hash_files(files) if files and self.trainer.is_global_zero else None
            source = self.origin if files else "random numbers"
            took = time.monotonic() - began
            log.info("Loaded %s from %s in %.1f s", self.encoder.config.name, source, took)
        self.name = self.encoder.config.name
        self.attention_used = choose_attention(
            self.attention, device=device, reduced=self.is_reduced, biased=self.biased
        )

    @property
    def _matrix_dtype(self) -> torch.dtype:
        return _MATRIX_DTYPES.get(unify_precision(self.trainer.precision), torch.float32)

    def check_layer(self, config: ESM2Config | DNABERTSConfig) -> None:
        """Check that a network has the layer asked for.

        Raises:
            UsageError: If it has not.
        """
        if self.layer is not None and not 0 <= self.layer <= config.layers:
            raise UsageError(f"{config.name} has layers 0 to {config.layers}, not {self.layer}")

    @property
    def origin(self) -> str:
        """Name of the file or folder of the weights, without where it lies; or `random`."""
        return "random" if self._found is None else os.path.basename(os.path.abspath(self._found))

    @property
    def weights_sha256(self) -> str:
        """Content hash of the weights; waits for it. Only rank 0 computes it."""
        return self._hash.result() if self._hash else self._random_hash

    @property
    def _random_hash(self) -> str:
        return f"random:{self.name}:{SEED}"

    @property
    def width(self) -> int:
        """D, numbers of a vector; from `configure_model` on."""
        return int(self.encoder.config.width)

    def width_of(self, column: str) -> int:
        """D, numbers of a vector."""
        return self.width

    @property
    def is_reduced(self) -> bool:
        """Whether matrix products are computed in FP16 or BF16."""
        return self._matrix_dtype in (torch.float16, torch.bfloat16)
