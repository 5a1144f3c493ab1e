"""What is drawn of a classifier: the folder that `fit` writes, whose files must agree."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from virnucpro_pl.errors import InputError
from virnucpro_pl.measures import Confusion, Reliability
from virnucpro_pl.plot.measure_tables import read_reliability, read_thresholds
from virnucpro_pl.plot.results import read_json

ITEMS = ("orfs", "records")
"""What is counted, as both tables and `metrics.json` name it."""
STAGES = ("before", "after")
"""Of the calibration."""
_METRICS, _CALIBRATION, _THRESHOLDS = "metrics.json", "calibration.tsv", "thresholds.tsv"


class Size(NamedTuple):
    """How many items a part has."""

    virus: int
    others: int

    @property
    def n(self) -> int:
        """All of them."""
        return self.virus + self.others


class Classifier(NamedTuple):
    """What `fit` has measured of the best epoch's classifier."""

    path: Path
    epoch: int
    measured_on: str
    """The held-out part that both tables are of: test, or validation if there is no test."""
    learnt_on: str
    """The part that the calibration was learnt on."""
    training: dict[str, Size]
    """By ITEMS."""
    held_out: dict[str, dict[str, Size]]
    """By held-out part, then by ITEMS."""
    metrics: dict[str, dict[str, dict[str, float]]]
    """By held-out part, then by ITEMS, by the metric's name."""
    prevalence: dict[str, float]
    """By ITEMS the share of virus in the training."""
    calibration: dict[str, float]
    """Its own numbers, by name."""
    reliability: dict[str, Reliability]
    """By ITEMS and STAGES, joined by an underscore: of P(virus) and what becomes of it."""
    thresholds: dict[str, Confusion]
    """By ITEMS: ORFs are called by P(virus), records by virus_score."""
    options: dict[str, Any]
    """Those of the training."""
    content: dict[str, Any]
    """All of `metrics.json`."""


def read_classifier(path: Path) -> Classifier:
    """Read what `fit` has measured.

    Args:
        path: Folder that it has written.

    Raises:
        InputError: If a file is missing or damaged, or they are not of one training.
    """
    for name in (_METRICS, _CALIBRATION, _THRESHOLDS):
        if not (path / name).is_file():
            raise InputError(
                f"{path} has no {name}, which fit writes beside best.ckpt: give the whole folder"
            )
    reliability = read_reliability(path / _CALIBRATION, [f"{i}_{s}" for i in ITEMS for s in STAGES])
    thresholds = read_thresholds(path / _THRESHOLDS, ITEMS)
    content = read_json(path / _METRICS)
    try:
        classifier = Classifier(
            path=path,
            epoch=int(content["epoch"]),
            measured_on=content["calibration"]["measured_on"],
            learnt_on=content["calibration"]["learnt_on"],
            training=_sizes(content["split"]["train"]),
            held_out={part: _sizes(content["split"][part]) for part in content["held_out"]},
            metrics={
                part: {
                    "orfs": _numbers(orfs),
                    "records": _numbers(content["held_out_records"][part]),
                }
                for part, orfs in content["held_out"].items()
            },
            prevalence={items: float(content["prevalence"][items]) for items in ITEMS},
            calibration=_numbers(content["calibration"]),
            reliability=reliability,
            thresholds=thresholds,
            options=dict(content["options"]),
            content=content,
        )
        sizes = classifier.held_out[classifier.measured_on]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path / _METRICS} is damaged, or not as fit writes it: {type(error).__name__} {error}"
        ) from error
    _check_sizes(path / _CALIBRATION, reliability, sizes)
    _check_sizes(path / _THRESHOLDS, thresholds, sizes)
    return classifier


def _sizes(counts: dict[str, dict[str, int]]) -> dict[str, Size]:
    return {items: Size(*(int(counts[of][items]) for of in Size._fields)) for items in ITEMS}


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    """Those of the values that are numbers."""
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}


def _check_sizes(
    path: Path, tables: Mapping[str, Reliability | Confusion], sizes: dict[str, Size]
) -> None:
    """Refuse a table that counts other items than `metrics.json`.

    Raises:
        InputError: If it does.
    """
    for name, counts in tables.items():
        size = sizes[name.partition("_")[0]]
        counted = [
            column.sum() if isinstance(counts, Reliability) else column[0]
            for column in (counts.n_virus, counts.n)
        ]
        if counted != [size.virus, size.n]:
            raise InputError(
                f"{path} is not of the training that {_METRICS} is of: it has {counted[1]} {name}"
                f", {counted[0]} of them virus, and not {size.n} and {size.virus}"
            )
