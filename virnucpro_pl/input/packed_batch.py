"""Sequences to tokens, and the packed batch that goes through a model.

Shapes: N sequences in a pack, B rows that have them, T tokens and P pooled tokens in a pack.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from virnucpro_pl.contracts import Tokenizer


class PackedBatch(NamedTuple):
    """Sequences one behind the other, as one forward pass takes them, and which rows have them."""

    rows: Tensor
    """(B,) int64 rows of the input; stays on the host."""
    ids: tuple[str, ...]
    """(B,) id of each row."""
    lengths: Tensor
    """(N,) int32 letters of each sequence as embedded; stays on the host."""
    tokens: Tensor
    """(T,) int64 token numbers, special tokens included."""
    cu_seqlens: Tensor
    """(N+1,) int32 start of each sequence in `tokens`, then T."""
    max_seqlen: int
    """Tokens of the longest sequence."""
    pool_tokens: Tensor
    """(P,) int64 places in `tokens` that go into the means."""
    pool_offsets: Tensor
    """(N+1,) int64 start of each sequence in `pool_tokens`, then P."""
    following: PackedBatch | None = None
    """The next pack, where the device is to begin with it already."""
    spread: Tensor | None = None
    """(B,) int64 which of the sequences each row has; stays on the host. None where each row has
    one of its own, in this order."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Send ids as a tensor, which goes through shared memory.

        In the pipe of the loader's processes they would fill it, and one that is killed in the
        middle of a message leaves the rank waiting for the rest of it.
        """
        ids = np.frombuffer("\0".join(self.ids).encode(), np.uint8).copy()
        return _received, (torch.from_numpy(ids), len(self.ids), *self._replace(ids=()))

    @property
    def size(self) -> int:
        """N, sequences."""
        return len(self.cu_seqlens) - 1

    def of_rows(self, numbers: Tensor) -> Tensor:
        """What belongs to each row (B, ...), of what belongs to each sequence (N, ...)."""
        return numbers if self.spread is None else numbers[self.spread]

    def ids_of(self, sequences: Sequence[int]) -> list[str]:
        """Ids of all rows that have one of these sequences."""
        if self.spread is None:
            return [self.ids[i] for i in sequences]
        wanted = set(sequences)
        pairs = zip(self.ids, self.spread.tolist(), strict=True)
        return [name for name, sequence in pairs if sequence in wanted]

    def to(self, device: torch.device) -> PackedBatch:
        """Copy what the model reads to a device, without waiting for it."""
        return self._replace(
            tokens=self.tokens.to(device, non_blocking=True),
            cu_seqlens=self.cu_seqlens.to(device, non_blocking=True),
            pool_tokens=self.pool_tokens.to(device, non_blocking=True),
            pool_offsets=self.pool_offsets.to(device, non_blocking=True),
        )

    def select(self, sequences: Sequence[int]) -> PackedBatch:
        """Make the pack of some of the sequences, in ascending order; waits for the device."""
        starts, pooled = self.cu_seqlens.tolist(), self.pool_offsets.tolist()
        counts = [starts[i + 1] - starts[i] for i in sequences]
        pools = [self.pool_tokens[pooled[i] : pooled[i + 1]] - starts[i] for i in sequences]
        edges = [0, *accumulate(counts)]
        device, wanted = self.tokens.device, torch.tensor(sequences)
        rows, spread = wanted, None
        if self.spread is not None:
            rows = torch.isin(self.spread, wanted).nonzero().flatten()
            spread = torch.searchsorted(wanted, self.spread[rows])
        return self._replace(
            rows=self.rows[rows],
            ids=tuple(self.ids[i] for i in rows.tolist()),
            lengths=self.lengths[wanted],
            tokens=torch.cat([self.tokens[starts[i] : starts[i + 1]] for i in sequences]),
            cu_seqlens=torch.tensor(edges, dtype=torch.int32, device=device),
            max_seqlen=max(counts),
            pool_tokens=torch.cat([p + edge for p, edge in zip(pools, edges, strict=False)]),
            pool_offsets=torch.tensor([0, *accumulate(map(len, pools))], device=device),
            following=None,
            spread=spread,
        )


def _received(ids: Tensor, count: int, *fields: Any) -> PackedBatch:
    """A batch that another process has sent."""
    names = ids.numpy().tobytes().decode().split("\0") if count else []
    return PackedBatch(*fields)._replace(ids=tuple(names))


def share(sequences: Sequence[bytes]) -> tuple[list[bytes], NDArray[np.int64] | None]:
    """The distinct ones of some rows' sequences, in the order of their first rows.

    Args:
        sequences: (B,) letters of each row.

    Returns:
        Those sequences (N,), and which of them each row has (B,); None for the latter if no two are
        equal.
    """
    places: dict[bytes, int] = {}
    spread = [places.setdefault(sequence, len(places)) for sequence in sequences]
    return list(places), None if len(places) == len(spread) else np.array(spread)


def pack(
    rows: NDArray[np.int64],
    ids: Sequence[str],
    sequences: Sequence[bytes],
    tokenizer: Tokenizer,
    pool_limit: int | None = None,
    spread: NDArray[np.int64] | None = None,
) -> PackedBatch:
    """Tokenise sequences and lay them one behind the other.

    Args:
        rows: (B,) rows of the input.
        ids: (B,) ids.
        sequences: (N,) letters.
        tokenizer: The model's.
        pool_limit: Tokens of each sequence that go into its mean at most; None for all.
        spread: (B,) which of the sequences each row has; None where each has its own.
    """
    tokens, counts = tokenizer.encode(sequences)
    lengths = np.fromiter(map(len, sequences), np.int32, len(sequences))
    return lay(rows, ids, lengths, tokens, counts, tokenizer.margin, pool_limit, spread)


def lay(
    rows: NDArray[np.int64],
    ids: Sequence[str],
    lengths: NDArray[np.int32],
    tokens: NDArray[np.int64],
    counts: NDArray[np.int64],
    margin: int,
    pool_limit: int | None = None,
    spread: NDArray[np.int64] | None = None,
) -> PackedBatch:
    """Make the batch of sequences that are tokenised already.

    Args:
        rows: (B,) rows of the input.
        ids: (B,) ids.
        lengths: (N,) letters.
        tokens: (T,) tokens of all sequences.
        counts: (N,) tokens of each sequence.
        margin: Tokens at each end of a sequence that are not in its mean.
        pool_limit: Tokens of each sequence that go into its mean at most; None for all.
        spread: (B,) which of the sequences each row has; None where each has its own.
    """
    cu_seqlens = np.concatenate(([0], np.cumsum(counts)))
    pooled = counts - 2 * margin
    if pool_limit is not None:
        pooled = np.minimum(pooled, pool_limit)
    offsets = np.concatenate(([0], np.cumsum(pooled)))
    first = cu_seqlens[:-1] + margin - offsets[:-1]
    places = np.arange(offsets[-1]) + np.repeat(first, pooled)
    return PackedBatch(
        rows=torch.from_numpy(rows),
        ids=tuple(ids),
        lengths=torch.from_numpy(lengths),
        tokens=torch.from_numpy(tokens),
        cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int32)),
        max_seqlen=int(counts.max()),
        pool_tokens=torch.from_numpy(places),
        pool_offsets=torch.from_numpy(offsets),
        spread=None if spread is None else torch.from_numpy(spread),
    )
