"""Folders of classifiers as `fit` writes them, from scores that are drawn at random."""

import numpy as np
import pytest

from virnucpro_pl.calibration import Calibration
from virnucpro_pl.fit.report import FitReport
from virnucpro_pl.measures import confusion_at, reliability

METRICS = {"accuracy": 0.8, "precision": 0.75, "recall": 0.6, "f1": 2 / 3, "mcc": 0.5}
METRICS |= {"auroc": 0.9, "average_precision": 0.85}


@pytest.fixture
def write_classifier():
    """Write a folder of `fit`, with every third ORF and record a virus."""

    def write(path, n_orfs=60, n_records=20, *, spread=0.3, part="test"):
        labels, scores = {}, {}
        for items, count in (("orfs", n_orfs), ("records", n_records)):
            random = np.random.default_rng(count)
            labels[items] = (np.arange(count) % 3 == 0).astype(np.int64)
            noise = random.normal(0.35 + 0.3 * labels[items], spread)
            scores[items] = np.clip(noise, 0, 1).astype(np.float32)
        sizes = {
            kind: {items: int((labels[items] == label).sum()) for items in labels}
            for label, kind in enumerate(("others", "virus"))
        }
        parts = dict.fromkeys(("validation", part))
        report = FitReport(
            calibration=Calibration(3.0, 0.0, 0.5, 1.0, 0.25, 0.3),
            part=part,
            orfs={name: {"loss": 0.4, **METRICS} for name in parts},
            records={name: METRICS for name in parts},
            thresholds={items: confusion_at(labels[items], scores[items]) for items in labels},
            reliability={
                f"{items}_{stage}": reliability(labels[items], change(scores[items]))
                for items in labels
                for stage, change in (("before", np.float32), ("after", lambda p: (1 + p) / 3))
            },
            content={
                "epoch": 7,
                "split": {"train": sizes, **dict.fromkeys(parts, sizes)},
                "prevalence": {"records": 0.3, "orfs": 0.35},
                "options": {"hidden": 512},
                "features": 3328,
                "chunk_length": 500,
            },
        )
        path.mkdir()
        report.write(path, checkpoint=path / "best.ckpt", config="")
        return path

    return write
