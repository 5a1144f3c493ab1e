"""VirNucPro's classifier (Li et al. 2025): features of an ORF in, P(others) and P(virus) out."""

from __future__ import annotations

import io
import logging
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from virnucpro_pl.calibration import Calibration
from virnucpro_pl.errors import UsageError, WeightsError, listed
from virnucpro_pl.models.checkpoint import is_plain, read_torch_file
from virnucpro_pl.models.download import hash_of
from virnucpro_pl.models.weights import assign_random, on_meta

log = logging.getLogger(__name__)

FEATURES = 768 + 2560
"""Width of the published features: DNABERT-S, then ESM-2 3B."""
RANDOM = "random"
"""Names a classifier with seeded random weights, whose calls mean nothing."""
CHUNK_LENGTH = "chunk_length"
"""Under which name a checkpoint of `fit` keeps the bases of the chunks it was trained on."""
EMBEDDERS = "embedders"
"""Under which name it keeps what made its features: by embedder, attributes of embedding files."""
CALIBRATION = "calibration"
"""Under which name it keeps what its scores mean."""
_NAMED = re.compile(r"(?:^|[^0-9A-Za-z])(\d{3,})_model")
"""The same number in the name of a published file, such as `500_model.pth`."""
_RANDOM_SEED = 147
"""With it the demo calls some records virus and some not, so that none of its files is empty."""
_PREFIX = "classifier."
"""What stands before the names in a Lightning checkpoint of `VirusClassifier` or `VirNucPro`."""


class MLPClassifier(nn.Module):
    """Two linear layers; attribute names are those of the published pickles. Always FP32.

    Attributes:
        chunk_length: Bases of the chunks that it was trained on; None where its file does not know.
        embedders: What is known of what made the features that it was trained on, by embedder and
            attribute; None where its file does not know.
        calibration: What its scores mean; None likewise.
    """

    chunk_length: int | None = None
    embedders: dict[str, dict[str, str]] | None = None
    calibration: Calibration | None = None

    def __init__(self, features: int = FEATURES, hidden: int = 512, classes: int = 2) -> None:
        """Create the parameters.

        Args:
            features: Width of an ORF's feature vector.
            hidden: Width of the hidden layer.
            classes: `others` and `virus`.
        """
        super().__init__()
        # Named, since Lightning changes the default while it builds a model in a true precision.
        self.hidden_layer = nn.Linear(features, hidden, dtype=torch.float32)
        self.bn1 = nn.BatchNorm1d(hidden, dtype=torch.float32)
        self.output_layer = nn.Linear(hidden, classes, dtype=torch.float32)
        self.dropout = nn.Dropout(0.5)

    @property
    def features(self) -> int:
        """Width of the feature vectors that it takes."""
        return self.hidden_layer.in_features

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, 2) of features (N, F)."""
        x = F.relu(self.bn1(self.hidden_layer(features)))  # (N, hidden)
        return self.output_layer(self.dropout(x))  # type: ignore[no-any-return]

    def probabilities(self, features: Tensor) -> Tensor:
        """P(others) and P(virus) (N, 2) in fp32, whatever autocast is on."""
        with torch.autocast(features.device.type, enabled=False):
            return F.softmax(self(features.float()), dim=1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MLPClassifier:
        """Move with the model that this is part of, but never take its dtype.

        Lightning casts a whole module in `bf16-true`, `16-true` and `64-true`.
        """

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(fn(tensor.new_empty(0)).device)

        return super()._apply(move, recurse)  # type: ignore[no-untyped-call,no-any-return]


def hash_classifier(source: str) -> str:
    """SHA-256 of a classifier's file; of `random` a text that says so.

    Raises:
        WeightsError: If the file cannot be read.
    """
    if source == RANDOM:
        return f"random:classifier:{_RANDOM_SEED}"
    try:
        return hash_of(Path(source).expanduser())
    except OSError as error:
        raise WeightsError(f"{source} cannot be read: {error.strerror}") from error


def load_classifier(source: str, features: int | None = None) -> MLPClassifier:
    """Load a classifier in FP32, in eval mode, on the CPU.

    Args:
        source: A published `.pth` (the whole pickled module `__main__.MLPClassifier`), a state
            dict, a Lightning checkpoint of this package, or `random` for a trial.
        features: Width of the embeddings that will be classified; None if it is not known yet.
            Random weights need it.

    Raises:
        WeightsError: If the file is missing, damaged, no classifier, of another width, not finite,
            or wants any class that a classifier has no need of.
    """
    if source == RANDOM:
        return _random(FEATURES if features is None else features)
    path = Path(source).expanduser()
    if not path.is_file():
        raise WeightsError(
            f"{path}: no such classifier; VirNucPro's own, 500_model.pth and 300_model.pth, are in "
            "its repository, github.com/Li-Jing-1997/VirNucPro"
        )
    # weights_only unpickling takes an instance of an allowed class, and then its attributes.
    parts = [MLPClassifier, nn.Linear, nn.BatchNorm1d, nn.Dropout, nn.ReLU, set, OrderedDict]
    allowed = [(MLPClassifier, "__main__.MLPClassifier"), *parts]
    content = read_torch_file(path, allowed, checksums=True)
    state = _tensors(_state(content, path), path)
    weight = state.get("hidden_layer.weight")
    if weight is None or weight.ndim != 2:
        raise WeightsError(f"{path} is no classifier: it has {listed(sorted(state)) or 'nothing'}")
    if features is not None:
        check_width(weight.shape[1], features, source)
    classifier = MLPClassifier(weight.shape[1], weight.shape[0])
    try:
        classifier.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(f"{path} is no classifier: {error}") from error
    classifier.chunk_length = _chunk_length(content, path)
    classifier.embedders = _embedders(content, path)
    classifier.calibration = _calibration(content, path)
    return classifier.eval().requires_grad_(False)


def save_classifier(
    path: Path,
    weights: Mapping[str, Tensor],
    *,
    calibration: Calibration,
    chunk_length: int | None,
    embedders: Mapping[str, Mapping[str, str]],
    options: Mapping[str, Any],
    epoch: int,
) -> None:
    """Write a checkpoint that `load_classifier` reads, with the names that Lightning gives.

    Args:
        path: The file to write.
        weights: State dict of an `MLPClassifier`.
        calibration: What its scores mean.
        chunk_length: Bases of the chunks that it was trained on, if that is known.
        embedders: What is known of what made its features.
        options: Of the training.
        epoch: That the weights are of, from 0.

    Raises:
        OSError: If the disk is full, for example.
    """
    content = {
        "state_dict": {f"{_PREFIX}{name}": tensor for name, tensor in weights.items()},
        "hyper_parameters": dict(options),
        "epoch": epoch,
        CHUNK_LENGTH: chunk_length,
        EMBEDDERS: {name: dict(known) for name, known in embedders.items()},
        CALIBRATION: calibration._asdict(),
    }
    file = io.BytesIO()  # of a full disk torch says only that its own writer failed
    torch.save(content, file)
    path.write_bytes(file.getbuffer())


def check_chunk_length(classifier: MLPClassifier, source: str, given: int) -> None:
    """Refuse chunks of another length than a classifier was trained on, if its file knows that.

    Where only the file's name speaks of another length, the log says so.

    Args:
        classifier: Loaded from `source`.
        source: Its file, or `random`.
        given: Bases of the chunks that it is to call.

    Raises:
        UsageError: With both lengths.
    """
    advice = "cut them with --data.length {} or give another --model.classifier"
    known = classifier.chunk_length
    if known is not None and known != given:
        raise UsageError(
            f"{source} was trained on chunks of {known} bases, and these are of {given}: "
            f"{advice.format(known)}"
        )
    named = _NAMED.search(Path(source).name)
    if known is None and named and int(named[1]) != given:
        log.warning(
            "%s is for chunks of %s bases, by its name, and these are of %d: %s",
            *(source, named[1], given, advice.format(named[1])),
        )


def _known(content: Any, name: str) -> Any:
    is_checkpoint = isinstance(content, dict) and "state_dict" in content
    return content.get(name) if is_checkpoint else None


def _chunk_length(content: Any, path: Path) -> int | None:
    """What a checkpoint of `fit` knows; None of any other file."""
    known = _known(content, CHUNK_LENGTH)
    if known is not None and (type(known) is not int or known < 1):
        raise WeightsError(f"{path} is no classifier: its {CHUNK_LENGTH} is no whole number")
    return known


def _embedders(content: Any, path: Path) -> dict[str, dict[str, str]] | None:
    """What a checkpoint of `fit` knows; None of any other file."""
    known = _known(content, EMBEDDERS)
    if known is None:
        return None
    if not isinstance(known, dict) or not all(isinstance(part, dict) for part in known.values()):
        raise WeightsError(f"{path} is no classifier: its {EMBEDDERS} is no table of tables")
    texts = [*known, *(text for part in known.values() for pair in part.items() for text in pair)]
    if not all(isinstance(text, str) for text in texts):
        raise WeightsError(f"{path} is no classifier: its {EMBEDDERS} hold more than text")
    return {name: dict(part) for name, part in known.items()}


def _calibration(content: Any, path: Path) -> Calibration | None:
    """What a checkpoint of `fit` knows; None of any other file."""
    known = _known(content, CALIBRATION)
    try:
        return None if known is None else Calibration.read(known)
    except ValueError as error:
        raise WeightsError(f"{path} is no classifier: in its {CALIBRATION} {error}") from error


def check_width(taken: int, given: int, source: str) -> None:
    """Refuse a classifier of other features than the embedders give, with both numbers."""
    if taken != given:
        raise WeightsError(
            f"{source} takes {taken} features, but DNABERT-S and ESM-2 together give {given}: "
            "it belongs to models of other sizes"
        )


def _random(features: int) -> MLPClassifier:
    classifier = on_meta(lambda: MLPClassifier(features))
    assign_random(
        classifier, device=torch.device("cpu"), matrix_dtype=torch.float32, seed=_RANDOM_SEED
    )
    classifier.bn1 = nn.BatchNorm1d(classifier.bn1.num_features, dtype=torch.float32)  # identity
    return classifier.eval().requires_grad_(False)


def _state(content: Any, path: Path) -> Mapping[Any, Any]:
    """Tensors by name, and whatever else a file of any of the three kinds may hold."""
    if isinstance(content, MLPClassifier):
        return _state_of_module(content, path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
        ours = {k: v for k, v in content.items() if str(k).startswith(_PREFIX)}
        return {str(name).removeprefix(_PREFIX): v for name, v in (ours or content).items()}
    if isinstance(content, dict):
        return content
    raise WeightsError(f"{path} is no classifier: it holds a {type(content).__name__}")


def _state_of_module(module: nn.Module, path: Path) -> dict[str, Any]:
    """Parameters and buffers, read from the attributes: nothing that a file brings is called."""
    try:
        children = vars(module)["_modules"]
        return {
            f"{child}.{name}": tensor
            for child in ("hidden_layer", "bn1", "output_layer")
            for table in ("_parameters", "_buffers")
            for name, tensor in vars(children[child])[table].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path} is no classifier: its pickled module lacks {error}") from error


def _tensors(state: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    """Check that all values are plain, finite tensors."""
    others = [str(name) for name, value in state.items() if not is_plain(value)]
    if others:
        raise WeightsError(f"{path} is no classifier: no tensors are {listed(others)}")
    bad = [str(name) for name, value in state.items() if not value.isfinite().all()]
    if bad:
        raise WeightsError(f"{path} is damaged: not all numbers are finite in {listed(bad)}")
    return {str(name): value for name, value in state.items()}
