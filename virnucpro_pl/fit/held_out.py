"""Held-out rows with their scores: what a finished classifier is measured and calibrated by."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from virnucpro_pl.errors import listed
from virnucpro_pl.fit.labelled_rows import LabelledRows
from virnucpro_pl.models.classifier import MLPClassifier
from virnucpro_pl.stability import NumericalInstabilityError

_BLOCK = 4096
_FRAME = re.compile(r"(.+_chunk_\d+)[FR][123]")
"""Finds the chunk in the id of an ORF that this package has named."""


class HeldOut(NamedTuple):
    """Rows that the weights were not fitted to: V of them, of C chunks of R records."""

    scores: NDArray[np.float32]
    """(V, 2) P(others) and P(virus)."""
    labels: NDArray[np.int64]
    """(V,) 0 for others, 1 for virus."""
    chunk: NDArray[np.int64]
    """(V,) number of each row's chunk, from 0."""
    record: NDArray[np.int64]
    """(V,) number of each row's record, from 0."""

    @property
    def record_labels(self) -> NDArray[np.int64]:
        """(R,) label of each record."""
        _, first = np.unique(self.record, return_index=True)
        return self.labels[first]

    @property
    def record_chunks(self) -> NDArray[np.int64]:
        """(R,) chunks of each record."""
        return np.bincount(self._owners)

    def record_means(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """Go from rows to records as `contigs.tsv` does.

        Args:
            values: (V,) a number of each row.

        Returns:
            (R,) the mean over a record's chunks of the largest number in the chunk.
        """
        owners = self._owners
        best = np.full(len(owners), -np.inf)
        np.maximum.at(best, self.chunk, values)
        return np.bincount(owners, weights=best) / np.bincount(owners)

    @property
    def _owners(self) -> NDArray[np.int64]:
        """(C,) record of each chunk."""
        owners = np.zeros(int(self.chunk.max(initial=-1)) + 1, np.int64)
        owners[self.chunk] = self.record
        return owners


def score_rows(
    classifier: MLPClassifier,
    rows: LabelledRows,
    chosen: NDArray[np.int64],
    record: NDArray[np.int64],
) -> HeldOut:
    """Score some rows, on the classifier's device.

    Args:
        classifier: In eval mode.
        rows: All rows of both sets.
        chosen: (V,) some of them, in ascending order.
        record: (M,) number of the record of each of all rows.

    Raises:
        NumericalInstabilityError: If a score is not finite.
    """
    device = next(classifier.parameters()).device
    scores = [np.empty((0, 2), np.float32)]
    chunks: dict[tuple[int, str], int] = {}
    chunk = np.empty(len(chosen), np.int64)
    for start in range(0, len(chosen), _BLOCK):
        block = chosen[start : start + _BLOCK]
        with torch.inference_mode():
            features = torch.from_numpy(rows.features(block)).to(device)
            scores.append(classifier.probabilities(features).cpu().numpy())
        keys = zip(record[block].tolist(), map(_chunk_of, rows.ids(block)), strict=True)
        chunk[start : start + len(block)] = [chunks.setdefault(k, len(chunks)) for k in keys]
    _, numbers = np.unique(record[chosen], return_inverse=True)
    held_out = HeldOut(np.concatenate(scores), rows.labels[chosen], chunk, numbers)
    unscored = chosen[~np.isfinite(held_out.scores).all(axis=1)]
    if len(unscored):
        raise NumericalInstabilityError(
            f"{len(unscored)} held-out ORF(s) have scores that are not finite, though their "
            f"embeddings are: {listed(rows.ids(unscored[:20]))}. Leave these out, or look at how "
            "they were embedded"
        )
    return held_out


def _chunk_of(name: str) -> str:
    """Name of an ORF's chunk; a row with any other name is a chunk of its own."""
    match = _FRAME.fullmatch(name)
    return match[1] if match else name
