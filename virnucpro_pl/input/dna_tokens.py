"""DNA to DNABERT-S tokens by byte-pair encoding, in the Rust library `tokenizers`."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from functools import cached_property
from itertools import chain, product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from virnucpro_pl.contracts import Molecule
from virnucpro_pl.errors import UsageError
from virnucpro_pl.git_lfs import refuse_pointer

BUILT_IN = "built-in"
"""What an output file says of the tokenizer that belongs to random weights."""
SPECIAL_TOKENS = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
"""In the order of DNABERT-S's own tokenizer, from token 0 on."""
_LONGEST_BUILT_IN = 5
_READS = 512
"""Random ones of each of two lengths by which tokens are estimated; 0.1 % is the standard error."""
_LENGTHS = (100, 500)
_MARGIN = 1.006
"""By how much more tokens are planned for than random DNA has; packs of 150 records of 500 bases
have a standard deviation of 0.2 %."""


class DNATokenizer:
    """DNA to tokens: `[CLS]`, byte pairs, `[SEP]`, all of which are pooled.

    How many tokens a sequence has is only known after tokenising. Packs are planned with an
    estimate and cut again, where it was too low, by the real counts: a pack never holds more tokens
    than it may, but for a single sequence that is longer by itself, and only how full packs are
    depends on the estimate. That is the tokenizer's own rate on random DNA, which real DNA mostly
    undercuts, because byte pairs are learned from real DNA, and a little more: a pack that is cut
    again costs nearly twice as much as one that is not quite full.

    The file is read when it is first needed, in each process that needs it. One process uses one
    core, unless TOKENIZERS_PARALLELISM says otherwise: a run has as many of them as it has workers.
    """

    molecule: Molecule = "DNA"
    specials = 2
    margin = 0

    def __init__(self, file: Path | None = None) -> None:
        """Keep what is needed to load the tokenizer.

        Args:
            file: A `tokenizer.json`; None for the built-in tokenizer of random weights.
        """
        self.file = file

    def __reduce__(self) -> tuple[type[DNATokenizer], tuple[Path | None]]:
        """Send the path to a worker, not the vocabulary."""
        return DNATokenizer, (self.file,)

    @cached_property
    def rust(self) -> Tokenizer:
        """The tokenizer itself, without truncation and padding.

        Raises:
            UsageError: If the file is missing, damaged, or adds other special tokens.
        """
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        tokenizer = built_in_tokenizer() if self.file is None else _read(self.file)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if (added := tokenizer.num_special_tokens_to_add(is_pair=False)) != self.specials:
            raise UsageError(
                f"{self.file} adds {added} special tokens to a sequence, not [CLS] and [SEP]"
            )
        return tokenizer

    def load(self) -> None:
        """Read the file now, so that a fault in it is found before anything is computed.

        Raises:
            UsageError: If the file is missing, damaged, or adds other special tokens.
        """
        _ = self.rust

    @property
    def vocabulary(self) -> int:
        """Rows that an embedding table needs for these tokens."""
        return max(self.rust.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def sha256(self) -> str:
        """Hash of the file, or `built-in`."""
        return hashlib.sha256(self.file.read_bytes()).hexdigest() if self.file else BUILT_IN

    @cached_property
    def rate(self) -> tuple[float, float]:
        """Tokens of random DNA: for each letter, and for the two ends, where pairs are broken.

        The same on every rank and machine.
        """
        means = [self._mean_tokens(length) for length in _LENGTHS]
        a_letter = (means[1] - means[0]) / (_LENGTHS[1] - _LENGTHS[0])
        return a_letter, means[0] - a_letter * _LENGTHS[0]

    def _mean_tokens(self, length: int) -> float:
        letters = np.random.default_rng(0).choice(
            np.frombuffer(b"ACGT", np.uint8), (_READS, length)
        )
        # One by one: threads that a batch may start would not live on in workers forked later.
        counts = [len(self.rust.encode(row.tobytes().decode()).ids) for row in letters]
        return sum(counts) / _READS - self.specials

    def estimate(self, lengths: NDArray[np.int64]) -> NDArray[np.float64]:
        """Tokens of sequences of these lengths, by the rate of random DNA; see the class."""
        a_letter, ends = self.rate
        return _MARGIN * (a_letter * lengths.astype(np.float64) + ends)

    def encode(self, sequences: Sequence[bytes]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tokens (T,) of all sequences, special ones included, and how many each has (N,)."""
        letters = [sequence.decode("ascii") for sequence in sequences]
        ids = [encoding.ids for encoding in self.rust.encode_batch_fast(letters)]
        counts = np.fromiter(map(len, ids), np.int64, len(ids))
        return np.fromiter(chain.from_iterable(ids), np.int64, int(counts.sum())), counts


def _read(file: Path) -> Tokenizer:
    try:
        refuse_pointer(file)
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{file} cannot be read as a tokenizer: {error}") from error
    try:
        return Tokenizer.from_str(json.dumps(content))
    except BaseException as error:  # it raises Exception itself, or a panic, which is none
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise UsageError(f"{file} is not a tokenizer.json of tokenizers: {error}") from error


def built_in_tokenizer() -> Tokenizer:
    """Make a small byte-pair tokenizer by rule, for random weights; it is nobody's published one.

    Its tokens are all strings of 1 to 5 bases. Pairs of letters are merged first, then pairs of
    pairs, then a letter is added to what is left beside one.
    """
    merges: list[tuple[str, str]] = []
    for left, right in ((1, 1), (2, 2), (2, 1), (4, 1)):
        merges.extend(product(_strings(left), _strings(right)))
    letters = [token for k in range(1, _LONGEST_BUILT_IN + 1) for token in _strings(k)]
    vocabulary = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *letters])}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")],
    )
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def _strings(length: int) -> list[str]:
    return ["".join(letters) for letters in product("ACGT", repeat=length)]
