"""What is measured of a finished classifier on the records that were held out of its training."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torchmetrics import MetricCollection

from virnucpro_pl.calibration import Calibration, score_log_odds, sigmoid
from virnucpro_pl.fit.calibrating import calibrate
from virnucpro_pl.fit.held_out import HeldOut, score_rows
from virnucpro_pl.fit.labelled_datamodule import LabelledPairDataModule
from virnucpro_pl.fit.splits import CLASSES
from virnucpro_pl.fit.training import METRICS, ClassifierTraining
from virnucpro_pl.measures import (
    Confusion,
    Reliability,
    confusion_at,
    reliability,
    write_calibration,
    write_thresholds,
)
from virnucpro_pl.models.classifier import CHUNK_LENGTH
from virnucpro_pl.output.atomic_files import write_json
from virnucpro_pl.version import __version__

METRICS_FILE = "metrics.json"
CALIBRATION_TABLE = "calibration.tsv"
THRESHOLDS_TABLE = "thresholds.tsv"


class FitReport(NamedTuple):
    """Measures of the best epoch's classifier."""

    calibration: Calibration
    """Learnt on the validation records."""
    part: str
    """The part that both tables are of: test where there is one, else validation."""
    orfs: dict[str, dict[str, float]]
    """By part the metrics of its ORFs."""
    records: dict[str, dict[str, float]]
    """By part the metrics of its records, by the mean of their chunks' best P(virus)."""
    thresholds: dict[str, Confusion]
    """Of ORFs by P(virus), and of records by that mean."""
    reliability: dict[str, Reliability]
    """Of ORFs and records before and after calibration."""
    content: dict[str, Any]
    """What else `metrics.json` has."""

    @classmethod
    def measure(
        cls, model: ClassifierTraining, data: LabelledPairDataModule, epoch: int
    ) -> FitReport:
        """Score all held-out rows, and learn from those of validation what the scores mean.

        Args:
            model: Holds the best epoch's weights, in eval mode.
            data: What it was trained on.
            epoch: The best one.
        """
        parts = {"validation": data.split.validation}
        if len(data.split.test):
            parts["test"] = data.split.test
        held_out = {
            name: score_rows(model.classifier, data.rows, rows, data.record)
            for name, rows in parts.items()
        }
        weights = model.loss_weights
        calibration = calibrate(
            held_out["validation"],
            0.0 if weights is None else float(torch.log(weights[1] / weights[0])),
        )
        part, measured = list(held_out.items())[-1]
        training = data.split.counts["train"]
        return cls(
            calibration=calibration,
            part=part,
            orfs={name: _orf_metrics(rows, weights) for name, rows in held_out.items()},
            records={name: _record_metrics(rows) for name, rows in held_out.items()},
            thresholds={
                "orfs": confusion_at(measured.labels, measured.scores[:, 1]),
                "records": confusion_at(measured.record_labels, _virus_scores(measured)),
            },
            reliability=_reliability(measured, calibration),
            content={
                "epoch": epoch,
                "split": data.split.counts,
                "prevalence": {of: _share_of_virus(training, of) for of in ("records", "orfs")},
                "options": model.options,
                "features": data.width,
                CHUNK_LENGTH: data.chunk_length,
                "input": data.provenance(),
                "package_version": __version__,
                "torch_version": str(torch.__version__),
                "epochs": model.history,
            },
        )

    def write(self, folder: Path, *, checkpoint: Path, config: str) -> None:
        """Write `metrics.json`, `calibration.tsv` and `thresholds.tsv`.

        Args:
            folder: Where.
            checkpoint: Where the classifier will be.
            config: The resolved options.
        """
        write_thresholds(folder / THRESHOLDS_TABLE, self.thresholds)
        write_calibration(folder / CALIBRATION_TABLE, self.reliability)
        content = {
            "checkpoint": str(checkpoint),
            "held_out": self.orfs,
            "held_out_records": self.records,
            "calibration": {
                **self.calibration._asdict(),
                "learnt_on": "validation",
                "measured_on": self.part,
                "expected_calibration_error": {
                    name: bins.expected_calibration_error for name, bins in self.reliability.items()
                },
                "brier_score": {name: bins.brier_score for name, bins in self.reliability.items()},
            },
            **self.content,
            "config": config,
        }
        write_json(folder / METRICS_FILE, content)


def _orf_metrics(rows: HeldOut, weights: torch.Tensor | None) -> dict[str, float]:
    logs = torch.from_numpy(rows.scores).log().clamp_min(torch.finfo(torch.float32).min)
    loss = F.nll_loss(logs, torch.from_numpy(rows.labels), weights)
    return {"loss": float(loss), **_metrics(rows.labels, rows.scores[:, 1])}


def _record_metrics(rows: HeldOut) -> dict[str, float]:
    return _metrics(rows.record_labels, _virus_scores(rows))


def _metrics(labels: NDArray[np.int64], scores: NDArray[np.float32]) -> dict[str, float]:
    collection = MetricCollection({name: metric() for name, metric in METRICS.items()})
    collection.update(torch.from_numpy(scores), torch.from_numpy(labels))
    return {name: float(value) for name, value in collection.compute().items()}


def _virus_scores(rows: HeldOut) -> NDArray[np.float32]:
    """(R,) virus_score of each record, as `contigs.tsv` has it."""
    return rows.record_means(rows.scores[:, 1]).astype(np.float32)


def _reliability(rows: HeldOut, calibration: Calibration) -> dict[str, Reliability]:
    labels = rows.record_labels
    raw = score_log_odds(rows.scores)
    records = calibration.record_log_odds(rows.record_means(raw), rows.record_chunks)
    return {
        "orfs_before": reliability(rows.labels, rows.scores[:, 1]),
        "orfs_after": reliability(rows.labels, sigmoid(calibration.orf_log_odds(raw))),
        "records_before": reliability(labels, _virus_scores(rows)),
        "records_after": reliability(labels, sigmoid(records)),
    }


def _share_of_virus(counts: dict[str, dict[str, int]], of: str) -> float:
    return counts[CLASSES[1]][of] / sum(kind[of] for kind in counts.values())
