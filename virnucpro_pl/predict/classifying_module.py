"""What modules that call viruses share: the classifier, and that it is for what they give it."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from virnucpro_pl.calibration import Calibration
from virnucpro_pl.contracts import source_of, workspace_of
from virnucpro_pl.embeddings.feature_origin import PRECISION, TITLES, Known, check_origin
from virnucpro_pl.errors import UsageError, listed
from virnucpro_pl.models.classifier import (
    RANDOM,
    MLPClassifier,
    check_chunk_length,
    hash_classifier,
    load_classifier,
)
from virnucpro_pl.predict.predict_module import PredictModule
from virnucpro_pl.stability import NumericalInstabilityError, describe_instability

log = logging.getLogger(__name__)


class ClassifyingModule(PredictModule):
    """What both modules share: the classifier, whose faults are found before all else is loaded.

    Attributes:
        classifier: The network, from `configure_model` on.
    """

    classifier: MLPClassifier

    def __init__(self, classifier: str) -> None:
        """Keep the source.

        Args:
            classifier: A published `.pth`, a state dict, a Lightning checkpoint, or `random`.
        """
        super().__init__()
        self.classifier_source = classifier
        self._classifier_sha256 = ""
        self._trained: Mapping[str, Known] | None = None
        self._features: int | None = None
        self._fault: UsageError | None = None

    def prepare_data(self) -> None:
        """Look at the classifier on rank 0; a fault is kept for all ranks to raise in setup."""
        self._fault, self._trained, self._features = None, None, None
        try:
            classifier = load_classifier(self.classifier_source)
            self._check_chunks(classifier)
            self._check_calibration(classifier)
            self._trained = classifier.embedders
            self._features = None if self.classifier_source == RANDOM else classifier.features
            self._classifier_sha256 = hash_classifier(self.classifier_source)
        except UsageError as error:
            self._fault = error
        if self.classifier_source == RANDOM:
            log.warning("The classifier has RANDOM weights: its calls mean nothing")

    def _check_chunks(self, classifier: MLPClassifier) -> None:
        """See that it is for the data's chunks, if the data could be read. On rank 0.

        Raises:
            UsageError: If it is not.
        """
        data = source_of(self.trainer)
        if data is None or data.fault is not None or not self.trainer.is_global_zero:
            return
        if data.chunk_length is not None:
            check_chunk_length(classifier, self.classifier_source, data.chunk_length)

    def _check_calibration(self, classifier: MLPClassifier) -> None:
        """See that its scores have a known meaning, if the writer needs that.

        Raises:
            UsageError: If they have not.
        """
        workspace = workspace_of(self.trainer)
        option = workspace.needs_calibration if workspace is not None else ""
        if option and classifier.calibration is None:
            raise UsageError(
                f"{option} needs a classifier that knows what its scores mean, and "
                f"{self.classifier_source} does not: train one with virnucpro-pl fit"
            )

    def setup(self, stage: str) -> None:
        """Stop all ranks where the data are none that can be classified, or the classifier is none.

        Raises:
            UsageError: On every rank, what is wrong.
        """
        fault = self.trainer.strategy.broadcast(self._fault)
        if fault is not None:
            raise fault
        self.check_data(source_of(self.trainer))

    @property
    @abstractmethod
    def advice(self) -> str:
        """What to do where the embeddings are not those that the classifier was trained on."""

    @abstractmethod
    def origins(self) -> dict[str, dict[str, str | None]]:
        """How the features are made, by embedder, as far as it is known by now; on rank 0."""

    @abstractmethod
    def longest_protein(self) -> int | None:
        """Residues of the longest ORF that is embedded, if known; from `setup` on."""

    def check_embedders(self, longest: int | None = None) -> list[str]:
        """Refuse features that are made in another way than those that it was trained on.

        Args:
            longest: Residues of the longest protein, if it is known by now.

        Returns:
            What could not be compared, in words.

        Raises:
            UsageError: If they are, as far as it is known by now.
        """
        if self._trained is None:
            return []
        return check_origin(
            self._trained,
            self.origins(),
            source=self.classifier_source,
            longest=longest,
            advice=self.advice,
        )

    def refuse_other_embedders(self) -> None:
        """Check them on rank 0, before anything is loaded, and say what could not be checked.

        Raises:
            UsageError: On every rank, if they are others.
        """
        fault, unknown = None, []
        if self.trainer.is_global_zero:
            try:
                unknown = self.check_embedders(self.longest_protein())
                self.check_features()
            except UsageError as error:
                fault = error
        fault = self.trainer.strategy.broadcast(fault)
        if fault is not None:
            raise fault
        if unknown:
            log.info(
                "%s was not compared with what it was trained on, where either is not known: %s",
                self.classifier_source,
                listed(unknown),
            )
        if self._trained is not None and self.trainer.is_global_zero:
            self._warn_of_precision(self._trained, self.origins())

    def check_features(self) -> None:
        """Refuse features of another width, where that is known before anything is loaded."""

    def _warn_of_precision(self, trained: Mapping[str, Known], given: Mapping[str, Known]) -> None:
        for name, title in TITLES.items():
            before, now = (known.get(name, {}).get(PRECISION) for known in (trained, given))
            if None not in (before, now) and before != now:
                log.warning(
                    "%s was trained on %s embeddings in %s, and these are in %s: best embed alike",
                    *(self.classifier_source, title, before, now),
                )

    @property
    def calibration(self) -> Calibration | None:
        """That of the classifier."""
        return self.classifier.calibration

    @property
    def input_files(self) -> list[Path]:
        """The classifier's file."""
        source = self.classifier_source
        return [] if source == RANDOM else [Path(source).expanduser()]

    def provenance(self) -> dict[str, Any]:
        """What an output records about the classifier."""
        return {
            "classifier": self.classifier_source,
            "classifier_sha256": self._classifier_sha256,
            "precision": str(self.trainer.precision),
        }


def unscored_error(
    scores: Tensor, failing: Tensor, ids: Sequence[str]
) -> NumericalInstabilityError:
    """The error for failing rows (N,) of scores (N, 2)."""
    named = [i for i, fails in zip(ids, failing.tolist(), strict=True) if fails]
    return describe_instability(scores[failing], "the classifier", named)
