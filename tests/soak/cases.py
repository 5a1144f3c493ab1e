"""What is run: a command on small models, what an undisturbed run of it leaves, and comparison."""

import json
import random
import time
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from tests.soak.materials import made_once, materials
from tests.soak.warm import Attempt

COMMANDS = ("esm2", "dnabert_s", "virnucpro", "classify", "fit")
_FIXED = ("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false")
_PATHS = ("config", "called_by", "checkpoint")
"""What records may say otherwise after a run with other options: where it was written."""

_INPUTS = {
    "esm2": "esm2.yaml --model.weights esm2.pt --data.path proteins.faa",
    "dnabert_s": "dnabert_s.yaml --model.weights dnabert_s --data.path dna.fna",
    "virnucpro": "virnucpro.yaml --model.esm2.weights esm2.pt --data.path contigs.fna "
    "--model.dnabert_s.weights dnabert_s --model.classifier classifier.ckpt",
    "classify": "classify.yaml --model.classifier classifier.ckpt "
    "--data.dnabert_s pair_dnabert_s.h5 --data.esm2 pair_esm2.h5",
    "fit": "train_classifier.yaml --trainer.max_epochs 5 "
    "--data.viral.dnabert_s viral_dnabert_s.h5 --data.viral.esm2 viral_esm2.h5 "
    "--data.other.dnabert_s other_dnabert_s.h5 --data.other.esm2 other_esm2.h5",
}
"""Of each command its config, and what it reads, by its name among the materials."""
_CHANGED = {
    "esm2": ("--model.layer", "1"),
    "dnabert_s": ("--data.max_length", "50"),
    "virnucpro": ("--model.esm2.layer", "1"),
    "classify": ("--model.classifier", "random"),
    "fit": ("--model.learning_rate", "0.01"),
}
"""Of each command an option that gives other numbers under the same names."""


class Case(NamedTuple):
    """A command and the options that decide what comes out."""

    command: str
    options: tuple[str, ...]

    @property
    def name(self) -> str:
        """A name for a folder."""
        words = (word.rpartition(".")[2].lstrip("-").replace("/", "-") for word in self.options)
        return "-".join((self.command, *words))

    @property
    def output(self) -> str:
        """What it writes, in the folder where it runs."""
        return "out.h5" if self.command in ("esm2", "dnabert_s") else "results"

    def changed(self) -> "Case":
        """Another case with the same files and rows, but other numbers in them."""
        return Case(self.command, (*self.options, *_CHANGED[self.command]))

    def words(self, shared: Path) -> list[str]:
        """The command line, but for ranks, workers and how it commits."""
        made = materials(shared)
        words = _INPUTS[self.command].split()
        words = [str(made / word) if (made / word).exists() else word for word in words]
        precision = () if self.command == "fit" else ("--trainer.precision", "32")
        begin = "fit" if self.command == "fit" else "predict"
        end = ("--writer.path", self.output)
        return [begin, "--config", *words, *_FIXED, *precision, *self.options, *end]

    # Without disturbance ----------------------------------------------------------------------

    def reference(self, shared: Path) -> Path:
        """A folder with the output of an undisturbed run on one rank, and what it did.

        `events` has a line for each call of the system that concerns a file there; `seconds` is
        how long the run took.

        Raises:
            RuntimeError: If even that failed.
        """
        words = [*self.words(shared), *self.running(workers=0, commit_seconds=0.05)]

        def make(folder: Path) -> None:
            began = time.monotonic()
            attempt = Attempt(words, folder, events=folder / "events")
            if not attempt.wait(120) or attempt.codes[0]:
                raise RuntimeError(f"An undisturbed run failed:\n{attempt.log}")
            (folder / "seconds").write_text(str(time.monotonic() - began))

        return made_once(shared / self.name, make)

    def running(
        self, *, workers: int, commit_seconds: float, stall_seconds: float = 600
    ) -> list[str]:
        """Options that change how it runs, but not what comes out."""
        if self.command == "fit":
            return []
        return [
            *("--data.num_workers", str(workers)),
            *("--writer.commit_seconds", str(commit_seconds)),
            *("--writer.stall_seconds", str(stall_seconds)),
        ]

    # Comparison -------------------------------------------------------------------------------

    def differences(self, output: Path, reference: Path) -> list[str]:
        """What is different in an output, by bits, from that in a folder of reference."""
        expected = reference / self.output
        if expected.is_file():
            return _file_differences(output, expected)
        names = [{path.name for path in folder.iterdir()} for folder in (output, expected)]
        if names[0] != names[1]:
            return [f"{output.name} holds {sorted(names[0])} and not {sorted(names[1])}"]
        return [
            difference
            for name in sorted(names[0])
            for difference in _file_differences(output / name, expected / name)
        ]


def draw_case(chance: random.Random, command: str | None = None) -> Case:
    """A command, and options that decide how its work is divided and what it keeps."""
    command = command or chance.choices(COMMANDS, (30, 20, 25, 15, 10))[0]
    options: list[str] = []
    if command == "esm2":
        options += ["--data.tokens_per_batch", chance.choice(("400", "1000"))]
        options += ["--writer.dtype", "float16"] if chance.random() < 0.2 else []
    elif command == "dnabert_s":
        options += ["--data.tokens_per_batch", chance.choice(("300", "700"))]
    elif command == "virnucpro":
        options += ["--data.tokens_per_batch", chance.choice(("700", "2000"))]
        options += ["--writer.save_embeddings", "true"]
        if chance.random() < 0.3:
            options += ["--data.save_orfs", "true", "--writer.bed", "true"]
    return Case(command, tuple(options))


def _file_differences(path: Path, expected: Path) -> list[str]:
    if path.suffix == ".h5":
        with h5py.File(path) as one, h5py.File(expected) as other:
            return _h5_differences(path.name, one, other)
    if path.suffix == ".json":
        one, other = (_without_paths(json.loads(p.read_text())) for p in (path, expected))
        return [] if one == other else [f"{path.name} says {one} and not {other}"]
    if path.suffix == ".ckpt":
        return _checkpoint_differences(path, expected)
    same = path.read_bytes() == expected.read_bytes()
    return [] if same else [f"{path.name} is not the same"]


def _h5_differences(name: str, one: h5py.File, other: h5py.File) -> list[str]:
    found = []
    if set(one) != set(other):
        found.append(f"{name} holds {sorted(one)} and not {sorted(other)}")
    for key in set(one) & set(other):
        a, b = one[key][()], other[key][()]
        if a.shape != b.shape or a.dtype != b.dtype or a.tobytes() != b.tobytes():
            if a.dtype == object and a.shape == b.shape and (a == b).all():
                continue
            rows = np.flatnonzero((a != b).reshape(len(a), -1).any(1)) if a.shape == b.shape else []
            found.append(f"{name}: {key} differs in rows {list(rows[:10])} of {len(a)}")
    attributes = [{k: v for k, v in f.attrs.items() if k not in _PATHS} for f in (one, other)]
    if str(attributes[0]) != str(attributes[1]):
        found.append(f"{name} has attributes {attributes[0]} and not {attributes[1]}")
    if not one.attrs.get("complete"):
        found.append(f"{name} is not complete")
    return found


def _checkpoint_differences(path: Path, expected: Path) -> list[str]:
    from virnucpro_pl.models.classifier import load_classifier

    one, other = (load_classifier(str(p)).state_dict() for p in (path, expected))
    same = one.keys() == other.keys() and all(one[k].equal(other[k]) for k in one)
    return [] if same else [f"{path.name} holds other weights"]


def _without_paths(content: Any) -> Any:
    if isinstance(content, dict):
        return {k: _without_paths(v) for k, v in content.items() if k not in _PATHS}
    return content
