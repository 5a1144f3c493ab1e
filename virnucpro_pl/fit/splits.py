"""The split of labelled rows into training, validation and test, by whole records."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro_pl.errors import UsageError

CLASSES = ("others", "virus")
"""Names of the labels 0 and 1, as the classifier has them."""


class Split(NamedTuple):
    """Rows of each part, in ascending order; no record has rows in two of them."""

    train: NDArray[np.int64]
    """Rows that the weights are fitted to."""
    validation: NDArray[np.int64]
    """Rows by which the best epoch is chosen."""
    test: NDArray[np.int64]
    """Rows that are looked at once, at the end; there may be none."""
    counts: dict[str, dict[str, dict[str, int]]]
    """By part and class, how many `records` and `orfs` there are."""

    def described(self) -> Iterator[str]:
        """Tell the size of each part, one line each."""
        for part, classes in self.counts.items():
            sizes = (f"{n['orfs']} ORFs of {n['records']} {c} records" for c, n in classes.items())
            yield f"{part}: {', '.join(sizes)}"


def split_records(
    labels: NDArray[np.int64],
    records: NDArray[np.int64],
    usable: NDArray[np.bool_],
    fractions: tuple[float, float],
    seed: int,
) -> Split:
    """Hold out whole records of each class, drawn at random.

    Args:
        labels: (M,) 0 for others, 1 for virus.
        records: (M,) number of each row's record; a record has one label.
        usable: (M,) whether the row takes part at all.
        fractions: Share of the records of each class for validation and for test; where it is above
            0 there is at least one record.
        seed: Seed of the draw.

    Raises:
        UsageError: If a class has not one record for each part.
    """
    generator = np.random.default_rng(seed)
    names = ("train", "validation", *(["test"] if fractions[1] > 0 else []))
    part_of = np.full(int(records.max(initial=-1)) + 1, -1)  # index into names
    for label, name in enumerate(CLASSES):
        members = np.unique(records[usable & (labels == label)])
        if len(members) < len(names):
            raise UsageError(
                f"The class {name} has {len(members)} record(s) with finite embeddings, too few to "
                f"split into {', '.join(names)}: it needs at least {len(names)}, better hundreds"
            )
        drawn = generator.permutation(members)
        sizes = [max(1, round(share * len(members))) for share in fractions[: len(names) - 1]]
        while sum(sizes) >= len(members):  # rounding must leave something to learn from
            sizes[sizes.index(max(sizes))] -= 1
        part_of[drawn] = 0
        for part, (stop, size) in enumerate(zip(np.cumsum(sizes), sizes, strict=True), 1):
            part_of[drawn[stop - size : stop]] = part
    parts = [np.flatnonzero(usable & (part_of[records] == part)) for part in range(3)]
    counts = {
        name: {
            kind: {
                "records": len(np.unique(records[rows[labels[rows] == label]])),
                "orfs": int(np.count_nonzero(labels[rows] == label)),
            }
            for label, kind in enumerate(CLASSES)
        }
        for name, rows in zip(names, parts, strict=False)
    }
    return Split(parts[0], parts[1], parts[2], counts)
