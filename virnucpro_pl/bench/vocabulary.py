"""A byte-pair vocabulary of the published size, so that DNA has about as many tokens as there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers.trainers import BpeTrainer

from virnucpro_pl.input.dna_tokens import SPECIAL_TOKENS, built_in_tokenizer
from virnucpro_pl.models.dnabert_s import SIZES


def write_tokenizer(path: Path) -> Path:
    """Train a tokenizer on random DNA; 500 bases of it have some 105 tokens.

    The built-in one of random weights needs no training, but makes 137 of them.
    """
    reads = np.random.default_rng(1).choice(np.frombuffer(b"ACGT", np.uint8), (2000, 500))
    trainer = BpeTrainer(
        vocab_size=SIZES["published"].vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )
    tokenizer = built_in_tokenizer()
    tokenizer.train_from_iterator((read.tobytes().decode() for read in reads), trainer)
    tokenizer.save(str(path))
    return path
