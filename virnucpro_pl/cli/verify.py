"""`virnucpro-pl verify`: whether this machine gives the numbers of the original program."""

from __future__ import annotations

import gc
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from virnucpro_pl.cli.predict import PredictCLI, predict
from virnucpro_pl.cli.shipped import config_names, read_config
from virnucpro_pl.errors import GateError, UsageError
from virnucpro_pl.input.protein_tokens import ProteinTokenizer
from virnucpro_pl.output.processes import launched_by_rank_0
from virnucpro_pl.precision import unify_precision
from virnucpro_pl.predict.lookahead import free_memory
from virnucpro_pl.verify.checks import FP32, check_run, explain
from virnucpro_pl.verify.printing import print_checks
from virnucpro_pl.verify.reference import CHUNK, CONTIGS, load_reference

log = logging.getLogger(__name__)

_FOLDER = "VIRNUCPRO_PL_VERIFY"
"""Environment variable that tells the ranks that Lightning launches the folder of rank 0."""


class VerifyCLI(PredictCLI):
    """`predict` on the contigs of `verify`."""

    def before_instantiate_classes(self) -> None:
        """Refuse what makes other ORFs or embeddings, and several nodes.

        Raises:
            UsageError: If there is any of it.
        """
        super().before_instantiate_classes()
        config, options = self.config.predict, self.config.predict.data.init_args
        others = [options.get(name) for name in ("max_length", "min_length", "max_chunks")]
        if options.get("length") != CHUNK or any(others):
            raise UsageError(
                f"verify knows the numbers of whole chunks of {CHUNK} bases alone: it cannot be "
                "run with another --data.length, nor with --data.max_length, --data.min_length or "
                "--data.max_chunks"
            )
        if config.trainer.num_nodes != 1:
            raise UsageError("verify runs on one node: run it on each, without --trainer.num_nodes")

    def after_instantiate_classes(self) -> None:
        """Make packs so small that each of several devices has one."""
        super().after_instantiate_classes()
        ranks, proteins = self.trainer.world_size, load_reference().proteins
        if ranks > 1:
            tokens = max(map(len, proteins)) + ProteinTokenizer.specials
            self.datamodule.tokens_asked = tokens * max(1, len(proteins) // ranks)
        if ranks > len(proteins) and self.trainer.is_global_zero:
            log.warning(
                "There is work for %d devices alone: verify the others with --trainer.devices [%d]",
                len(proteins), len(proteins),
            )  # fmt: skip


def verify(words: list[str]) -> None:
    """Run two contigs in the precision asked for and in FP32, and compare with the reference.

    Args:
        words: A command line of `predict` without input and output.

    Raises:
        UsageError: If it cannot be followed.
        GateError: On every rank, if the numbers are too far from the reference's: what differs.
    """
    _check_launcher()
    words = [*words, *_own_options(words)]
    outputs: dict[str, Path] = {}
    with _quiet(), _folder_of_rank_0() as folder:
        for more in ([], ["--trainer.precision", "32"]):
            trainer = None  # and with it the weights, for which there may be no room twice
            gc.collect()
            free_memory()
            output = folder / f"output{len(outputs)}"
            trainer = predict([*words, *more, "--writer.path", str(output)], VerifyCLI).trainer
            outputs[unify_precision(trainer.precision)] = output
            if FP32 in outputs:
                break
        assert trainer is not None
        fault = _compare(outputs) if trainer.is_global_zero else None
        fault = trainer.strategy.broadcast(fault)
    if fault:
        raise GateError(fault)


def _compare(outputs: dict[str, Path]) -> str | None:
    """Print all checks; a sentence on what differs, if anything does."""
    reference = load_reference()
    checks = [c for name, path in outputs.items() for c in check_run(path, name, reference)]
    print_checks(checks)
    left_out = dict.fromkeys(check.quantity for check in checks if check.met is None)
    if left_out:
        log.warning("Not compared: %s", ", ".join(left_out))
    fault = explain(checks)
    if fault is None:
        log.info("All that was compared is within its limits")
    return fault


def _check_launcher() -> None:
    """Refuse processes that torchrun or Slurm has started: they share no temporary folder.

    Raises:
        UsageError: If there are several of them.
    """
    for kind in (TorchElasticEnvironment, SLURMEnvironment):
        if kind.detect() and kind().world_size() > 1:
            raise UsageError(
                "verify starts the process of each of --trainer.devices itself: run it without "
                "torchrun, or in a Slurm job of one task"
            )


def _own_options(words: list[str]) -> list[str]:
    """Options that `verify` adds: input, what is written, and a classifier where none is given.

    Raises:
        UsageError: If no config is of the whole job.
    """
    options = ["--data.path", str(CONTIGS), "--data.save_orfs", "true"]
    models = [read_config(Path(name)).get("model") for name in config_names(words)]
    inner = [model.get("init_args") or {} for model in models if isinstance(model, dict)]
    if inner and not any("dnabert_s" in names for names in inner):
        raise UsageError("verify runs the whole job: give virnucpro.yaml or a config like it")
    given = [word.partition("=")[0].rpartition(".")[2] for word in words]
    if not any("classifier" in names for names in (given, *inner)):
        options += ["--model.classifier", "random"]
    return [*options, "--writer.save_embeddings", "true"]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep from the log what is said of an output that nobody will look at."""
    output = logging.getLogger("virnucpro_pl.output")
    before = output.level
    output.setLevel(logging.WARNING)
    try:
        yield
    finally:
        output.setLevel(before)


@contextmanager
def _folder_of_rank_0() -> Iterator[Path]:
    """A temporary folder, the same on every rank; rank 0 makes and removes it."""
    if launched_by_rank_0():
        yield Path(os.environ[_FOLDER])
        return
    with tempfile.TemporaryDirectory(prefix="virnucpro-pl-verify-") as folder:
        os.environ[_FOLDER] = folder
        yield Path(folder)
