"""VirNucPro's classifier (Li et al. 2025): features of an ORF in, P(others) and P(virus) out."""

from __future__ import annotations

import logging
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from virnucpro_pl.errors import WeightsError, listed
from virnucpro_pl.models.weights import assign_random, read_torch_file

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FEATURES", "MLPClassifier", "load_classifier"]

log = logging.getLogger(__name__)

FEATURES = 768 + 2560
"""Width of the published features: DNABERT-S, then ESM-2 3B."""
_PREFIX = "classifier."
"""What stands before the names in a Lightning checkpoint of `VirusClassifier`."""


class MLPClassifier(nn.Module):
    """Two linear layers; attribute names are those of the published pickles."""

    def __init__(self, features: int = FEATURES, hidden: int = 512, classes: int = 2) -> None:
        """Create the parameters.

        Args:
            features: Width of an ORF's feature vector.
            hidden: Width of the hidden layer.
            classes: `others` and `virus`.
        """
        super().__init__()
        self.hidden_layer = nn.Linear(features, hidden)
        self.bn1 = nn.BatchNorm1d(hidden)
        self.output_layer = nn.Linear(hidden, classes)
        self.dropout = nn.Dropout(0.5)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, 2) of features (N, F)."""
        x = F.relu(self.bn1(self.hidden_layer(features)))
        return self.output_layer(self.dropout(x))  # type: ignore[no-any-return]

    def probabilities(self, features: Tensor) -> Tensor:
        """P(others) and P(virus) (N, 2) in fp32, whatever autocast is on."""
        with torch.autocast(features.device.type, enabled=False):
            return F.softmax(self(features.float()), dim=1)


def load_classifier(source: str, features: int = FEATURES) -> MLPClassifier:
    """Load a classifier in FP32, in eval mode, on the CPU.

    Args:
        source: A published `.pth` (the whole pickled module `__main__.MLPClassifier`), a state dict,
            a Lightning checkpoint of `VirusClassifier`, or `random` for a trial.
        features: Width of the embeddings that will be classified.

    Raises:
        WeightsError: If the file is missing, damaged, no classifier, of another width, or wants any
            class that a classifier has no need of.
    """
    if source == "random":
        log.warning("The classifier has RANDOM weights: its calls mean nothing")
        return _random(features)
    path = Path(source).expanduser()
    # weights_only unpickling takes an instance of an allowed class, and then its attributes.
    content = read_torch_file(
        path,
        [
            (MLPClassifier, "__main__.MLPClassifier"),
            MLPClassifier,
            nn.Linear,
            nn.BatchNorm1d,
            nn.Dropout,
            nn.ReLU,
            set,
            OrderedDict,
        ],
    )
    state = _state(content, path)
    weight = state.get("hidden_layer.weight")
    if weight is None or weight.ndim != 2:
        raise WeightsError(f"{path} is no classifier: it has {listed(sorted(map(str, state)))}")
    if weight.shape[1] != features:
        raise WeightsError(
            f"{path} takes {weight.shape[1]} features, but DNABERT-S and ESM-2 together give "
            f"{features}: it belongs to models of other sizes"
        )
    classifier = MLPClassifier(features, weight.shape[0])
    try:
        classifier.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(f"{path} is no classifier: {error}") from error
    return classifier.float().eval().requires_grad_(False)


def _random(features: int) -> MLPClassifier:
    with torch.device("meta"):
        classifier = MLPClassifier(features)
    assign_random(classifier, device=torch.device("cpu"), matrix_dtype=torch.float32)
    classifier.bn1.to_empty(device="cpu")
    classifier.bn1.reset_parameters()
    return classifier.eval().requires_grad_(False)


def _state(content: Any, path: Path) -> Mapping[str, Tensor]:
    if isinstance(content, nn.Module):
        return content.state_dict()
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        return {k.removeprefix(_PREFIX): v for k, v in content["state_dict"].items()}
    if isinstance(content, dict):
        return content
    raise WeightsError(f"{path} is no classifier: it holds a {type(content).__name__}")
