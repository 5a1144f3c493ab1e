"""The LightningModules that embed: ESM-2 for proteins, DNABERT-S for DNA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from virnucpro_pl.errors import UsageError
from virnucpro_pl.input.dna_tokens import DNATokenizer
from virnucpro_pl.input.protein_tokens import ProteinTokenizer
from virnucpro_pl.models import dnabert_s, dnabert_s_files, esm2, esm2_files
from virnucpro_pl.models.attention import Attention, BiasedAttention
from virnucpro_pl.predict.recovery import OnInstability
from virnucpro_pl.predict.sequence_embedder import Compile, SequenceEmbedder


class ESM2Embedder(SequenceEmbedder):
    """ESM-2 embeddings of proteins: the mean of a layer's hidden states over all residues."""

    def __init__(
        self,
        name: str | None = None,
        weights: str | None = None,
        layer: int | None = None,
        enable_fp16: bool = True,
        attention: Attention = "auto",
        compile: Compile = "auto",
        on_instability: OnInstability = "raise",
    ) -> None:
        """Configure an ESM-2.

        Args:
            name: A published size, such as esm2_t6_8M_UR50D, 35M, 150M, 650M, 3B or 15B; nothing
                for esm2_t36_3B_UR50D, or for the size that a file or folder of weights has.
            weights: Nothing for the published file of that name (torch hub cache, else download), a
                fair-esm `.pt` file, a transformers folder, a state dict or Lightning checkpoint
                with the whole encoder in it, or `random` for a trial.
            layer: Layer to pool, 0 for the token embeddings; nothing for the last.
            enable_fp16: False for no FP16: FP32, unless the Trainer says bf16 on a GPU.
            attention: `triton` or `varlen` (packed, GPU only), `sdpa` (any device), or `auto`.
            compile: False for PyTorch's own operations where a GPU has kernels of this package,
                which are compiled at their first use and spare passes over memory.
            on_instability: What becomes of sequences whose numbers are not finite: `raise` ends
                the run; `fp32` computes them again in FP32, and leaves the rows of those NaN that
                are not finite even then; `skip` leaves all their rows NaN. The latter two do so
                with a sequence that is too large for the device's memory, too.
        """
        self.wanted = name or (esm2.DEFAULT if weights in (None, "random") else None)
        super().__init__(
            self.wanted or "ESM-2",
            layer=layer,
            enable_fp16=enable_fp16,
            attention=attention,
            compile=compile,
            on_instability=on_instability,
        )
        self.weights = weights
        self.tokenizer = ProteinTokenizer()

    def find_weights(self) -> Path | None:
        """Find (or download) the weights, and learn their name; None for random ones.

        Raises:
            UsageError: If they are missing, damaged, or another model's than the one asked for.
        """
        path = esm2_files.find_weights(self.wanted, self.weights)
        if path is not None:
            self.look_at(*esm2_files.read_config(self.wanted, path))
        return path

    @property
    def expected_sizes(self) -> esm2.ESM2Config | None:
        """That of the name asked for."""
        return esm2.SIZES.get(self.wanted or "")

    def load_encoder(
        self, path: Path | None, device: torch.device, matrix_dtype: torch.dtype
    ) -> tuple[esm2.ESM2, list[Path]]:
        """Load the network and check that it has the layer asked for.

        Raises:
            UsageError: If it has not.
        """
        encoder, files = esm2_files.load_esm2(
            self.wanted, path, device=device, matrix_dtype=matrix_dtype
        )
        self.check_layer(encoder.config)
        return encoder, files

    @property
    def input_files(self) -> list[Path]:
        """The file or folder of the weights, unless they are random."""
        if self.weights is None:
            return [esm2_files.published_file(self.name)]
        return [] if self.weights == "random" else [Path(self.weights).expanduser()]


class DNABERTSEmbedder(SequenceEmbedder):
    """DNABERT-S embeddings of DNA: the mean of a layer's hidden states over all tokens."""

    biased = True

    def __init__(
        self,
        weights: str | None = None,
        tokenizer: str | None = None,
        layer: int | None = None,
        enable_fp16: bool = True,
        attention: BiasedAttention = "auto",
        compile: Compile = "auto",
        on_instability: OnInstability = "raise",
        size: dnabert_s.Size = "published",
    ) -> None:
        """Configure a DNABERT-S.

        Args:
            weights: Nothing for zhihan1996/DNABERT-S (Hugging Face cache, else download), a folder
                with config.json and weights, a weights file, a state dict or Lightning checkpoint
                with the whole encoder in it (beside its config.json, if its sizes are not the
                published ones), or `random` for a trial.
            tokenizer: A tokenizer.json or a folder with one; nothing for the one that lies with the
                weights, or the built-in one of random weights.
            layer: Layer to pool, 0 for the token embeddings; nothing for the last.
            enable_fp16: False for no FP16: FP32, unless the Trainer says bf16 on a GPU.
            attention: `triton` (packed, GPU only), `sdpa` (any device), or `auto`.
            compile: False for PyTorch's own operations where a GPU has kernels of this package,
                which are compiled at their first use and spare passes over memory.
            on_instability: What becomes of sequences whose numbers are not finite: `raise` ends
                the run; `fp32` computes them again in FP32, and leaves the rows of those NaN that
                are not finite even then; `skip` leaves all their rows NaN. The latter two do so
                with a sequence that is too large for the device's memory, too.
            size: Size of random weights, `published` or `tiny`; other weights have their own.
        """
        super().__init__(
            dnabert_s.SIZES[size].name,
            layer=layer,
            enable_fp16=enable_fp16,
            attention=attention,
            compile=compile,
            on_instability=on_instability,
        )
        self.weights = weights
        self.size = size
        self.named_tokenizer = tokenizer
        # Where the authors' lies in the cache is known in `setup`; its letters are needed before.
        expected = None if weights == "random" else Path(weights or dnabert_s_files.REPOSITORY)
        self.tokenizer: DNATokenizer = self.find_tokenizer(expected)

    def find_tokenizer(self, weights: Path | None) -> DNATokenizer:
        """The tokenizer asked for, or the one that lies with these weights; it is not read yet."""
        if self.named_tokenizer is None and weights is None:
            return DNATokenizer()
        path = Path(self.named_tokenizer).expanduser() if self.named_tokenizer else weights
        assert path is not None
        if path.suffix != ".json":
            folder = path.parent if path.is_file() else path
            path = folder / "tokenizer.json"
        return DNATokenizer(path)

    def find_weights(self) -> Path | None:
        """Find (or download) the weights, and learn their name; None for random ones.

        Raises:
            UsageError: If they or their tokenizer are missing or damaged.
        """
        path = dnabert_s_files.find_weights(self.size, self.weights)
        self.find_tokenizer(path).load()
        if path is not None:
            self.look_at(*dnabert_s_files.read_config(path))
        return path

    @property
    def expected_sizes(self) -> dnabert_s.DNABERTSConfig | None:
        """That of random weights, or of the authors'."""
        return dnabert_s.SIZES[self.size] if self.weights in (None, "random") else None

    def identity(self) -> dict[str, str | None]:
        """What its vectors depend on, as far as it is known: the tokenizer, too."""
        found = self.is_found and self.find_tokenizer(self._found).sha256
        return {**super().identity(), "tokenizer_sha256": found or None}

    @property
    def origin(self) -> str:
        """Name of the repository, file or folder of the weights; or `random`."""
        return dnabert_s_files.REPOSITORY if self.weights is None else super().origin

    def setup(self, stage: str) -> None:
        """Tell every rank where weights and tokenizer are.

        Raises:
            UsageError: On every rank, what rank 0 found in `prepare_data`.
        """
        super().setup(stage)
        self.tokenizer = self.find_tokenizer(self._found)

    def load_encoder(
        self, path: Path | None, device: torch.device, matrix_dtype: torch.dtype
    ) -> tuple[dnabert_s.DNABERTS, list[Path]]:
        """Load the network and check that it has the layer asked for and all of the tokens.

        Raises:
            UsageError: If it has not.
        """
        encoder, files = dnabert_s_files.load_dnabert_s(
            self.size, path, device=device, matrix_dtype=matrix_dtype
        )
        self.check_layer(encoder.config)
        config, needed = encoder.config, self.tokenizer.vocabulary
        if needed > config.vocabulary:
            raise UsageError(
                f"{self.tokenizer.file} has {needed} tokens, but {config.name} knows "
                f"{config.vocabulary}: it is the tokenizer of another model"
            )
        return encoder, files

    def provenance(self) -> dict[str, Any]:
        """What an output file records about its model, its origin and its tokenizer."""
        return {
            **super().provenance(),
            "weights_revision": dnabert_s_files.revision(self._found),
            "tokenizer_sha256": self.tokenizer.sha256,
        }

    @property
    def input_files(self) -> list[Path]:
        """The files or folders of weights and tokenizer, unless they are random and built in."""
        weights = str(dnabert_s_files.cache_folder()) if self.weights is None else self.weights
        sources = (None if weights == "random" else weights, self.named_tokenizer)
        return [Path(source).expanduser() for source in sources if source is not None]
