"""Results joined with known labels by id: what is measured, and which records miss the other."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro_pl.embeddings.id_table import IdTable, match_ids
from virnucpro_pl.errors import InputError, UsageError
from virnucpro_pl.evaluate.contig_table import ContigTable
from virnucpro_pl.evaluate.figures import Figures, measure
from virnucpro_pl.evaluate.truth_table import TruthTable


class Missing(NamedTuple):
    """Records that stand on one side only."""

    ids: IdTable
    """Ids of that side."""
    rows: NDArray[np.int64]
    """Their places there, ascending."""


class Evaluation(NamedTuple):
    """All that is said of results."""

    results: Path
    truth: Path
    n_results: int
    n_labels: int
    without_label: Missing
    """Records of the results."""
    without_result: Missing
    """Records of the labels."""
    figures: Figures
    """Of all other records."""


def evaluate_results(contigs: ContigTable, truth: TruthTable, scratch: Path) -> Evaluation:
    """Join both tables by id and measure what they share.

    Each table is read once, its ids to the disk, its numbers to memory.

    Args:
        contigs: Of the results.
        truth: The labels.
        scratch: An existing folder for the ids, to which the records that miss refer.

    Raises:
        InputError: If a table is damaged or names a record twice, or they share no record.
        UsageError: If there is no room for the ids.
    """
    try:
        match, ids, labelled_ids = match_ids((contigs, truth), scratch)
    except OSError as error:
        raise UsageError(f"The ids cannot be stored in {scratch}: {error}") from error
    if not len(match.first):
        examples = [
            f"{path} has {', '.join(table(np.arange(min(3, len(table))))) or 'no record'}"
            for path, table in ((contigs.path, ids), (truth.path, labelled_ids))
        ]
        raise InputError(
            f"No record has both a row and a label: {'; '.join(examples)}. The seq_name of a label "
            "is the first word of the record's header"
        )
    return Evaluation(
        contigs.path,
        truth.path,
        len(ids),
        len(labelled_ids),
        Missing(ids, match.only_first),
        Missing(labelled_ids, match.only_second),
        measure(contigs, match.first, truth.labels[match.second]),
    )
