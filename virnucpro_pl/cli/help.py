"""The pages that `virnucpro-pl --help` and that of `predict`, `fit` and `verify` show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from virnucpro_pl.cli.shipped import config_files, config_names, configs_for
from virnucpro_pl.cli.short_form import ALIASES, INPUT

ALL = "--help-all"
"""Asks for every option that Lightning knows."""


class Command(NamedTuple):
    """A command."""

    use: str
    """What it does, in a line."""
    module: str
    """Where it is: a function of its name."""


COMMANDS = {
    "predict": Command("sequences in, calls or embeddings out", "virnucpro_pl.cli.predict"),
    "bench": Command(
        "measure this program on your own card, beside its peers", "virnucpro_pl.bench.command"
    ),
    "compare": Command(
        "tell how far two embedding files or prediction tables are apart",
        "virnucpro_pl.compare.command",
    ),
    "evaluate": Command(
        "tell how right results are, by records with a known label",
        "virnucpro_pl.evaluate.command",
    ),
    "export": Command(
        "write an embedding file, or calls, as other programs read them",
        "virnucpro_pl.embeddings.export",
    ),
    "fit": Command("train a classifier on embedding files", "virnucpro_pl.cli.fit"),
    "plot": Command("draw results, embeddings or a classifier", "virnucpro_pl.plot.command"),
    "verify": Command(
        "tell whether this machine gives VirNucPro's own numbers", "virnucpro_pl.cli.verify"
    ),
}

_OVERVIEW = """usage: virnucpro-pl COMMAND [options]

Find viral sequences in sequencing data: VirNucPro as a PyTorch Lightning package.

commands:
{commands}

  virnucpro-pl COMMAND --help                 options of a command
  virnucpro-pl predict --config NAME --help   options of what a config names
  virnucpro-pl predict --config demo.yaml     a trial without any download
  virnucpro-pl --version                      the version

with any command:
  --verbose         say more: the time of each phase, how full packs are
  --log_file FILE   write the log to a file, too

shipped configs:
{configs}

exit codes: 0 every row written; 1 unexpected failure, or a gate of compare or verify not met;
2 bad usage, configuration or input (nothing was computed); 3 numerical instability (committed rows
are kept); 130 Ctrl-C; 143 SIGTERM.
An interrupted command continues where it was when it is run again.
"""

_PREDICT = """usage: virnucpro-pl predict INPUT... -o OUTPUT [--config NAME] [options]

Sequences in, calls or embeddings out. The config says which, virnucpro.yaml if none is named;
options on the command line win.

short for:
{aliases}

shipped configs:
{configs}

options that matter most:
  --config NAME              a shipped config, or a file of yours
  --data.path FILE...        FASTA or FASTQ, plain or compressed, or unmapped BAM; - is standard
                             input
  --data.length 300          bases of a chunk, with 300_model.pth
  --data.repeated_ids RULE   mates where both reads of a pair have one id, else number or error
  --data.tokens_per_batch N  tokens of a pack: fewer need less memory of the GPU
  --model.weights FILE       weights of the embedding model, or random for a trial; with
                             virnucpro.yaml --model.esm2.weights and --model.dnabert_s.weights
  --model.classifier FILE    VirNucPro's 500_model.pth or 300_model.pth, or what fit has made
  --model.enable_fp16 false  no FP16: compute in FP32, as VIRNUCPRO_DISABLE_FP16=1 does; only a
                             precision of bf16-* given for a GPU stays
  --writer.path PATH         file or folder to write
  --writer.overwrite true    replace an output, or discard an interrupted run
  --trainer.accelerator A    auto (a GPU where there is one), cuda or cpu
  --trainer.devices N        GPUs; for more than one also give --trainer.strategy ddp
  --trainer.precision P      16-mixed, bf16-mixed or 32
  --print_config             print all options as they are set, and run nothing

examples:
  virnucpro-pl predict --config demo.yaml
  virnucpro-pl predict contigs.fasta.gz -o results --classifier 500_model.pth
  virnucpro-pl predict R1.fq.gz R2.fq.gz -o results --data.repeated_ids mates \\
    --classifier 300_model.pth --data.length 300
  virnucpro-pl predict --config esm2.yaml proteins.faa -o proteins.h5

more options:
  virnucpro-pl predict --config NAME --help   those of what a config names
  virnucpro-pl predict --help-all             all that Lightning knows
"""

_FIT = """usage: virnucpro-pl fit --config NAME [options]

Train a classifier on embeddings of viral and of other ORFs.

shipped configs:
{configs}

options that matter most:
  --config NAME                  a shipped config, or a file of yours
  --data.viral.dnabert_s FILE    embedding files of the viral ORFs: of their nucleotides,
  --data.viral.esm2 FILE           and of their proteins
  --data.other.dnabert_s FILE    the same of other ORFs
  --data.other.esm2 FILE
  --data.validation_fraction X   share of the records that are held out for choosing the epoch
  --data.test_fraction X         share that is held out for the end
  --model.class_weights W        none, balanced, or [1, 4] for others and virus
  --model.learning_rate X        how far a step goes at first
  --early_stopping.patience N    epochs without a better one after which the training ends
  --trainer.max_epochs N         epochs after which it ends at the latest
  --seed_everything N            seed of the split and of the training
  --writer.path FOLDER           folder to write
  --writer.overwrite true        replace it
  --print_config                 print all options as they are set, and run nothing

example:
  virnucpro-pl fit --config train_classifier.yaml --writer.path classifier \\
    --data.viral.dnabert_s viral/dnabert_s.h5 --data.viral.esm2 viral/esm2.h5 \\
    --data.other.dnabert_s other/dnabert_s.h5 --data.other.esm2 other/esm2.h5

more options:
  virnucpro-pl fit --help-all   all that there are, with their defaults
"""

_VERIFY = """usage: virnucpro-pl verify [--classifier 500_model.pth] [options]

Run two contigs of its own through the whole job on this machine, in the precision asked for and in
FP32, and compare ids, ORFs, embeddings, scores and labels with those of VirNucPro in FP32. What
cannot be compared, for lack of a classifier or with another ESM-2 than 3B, is left out.

options are those of predict, without an input and an output:
  --config NAME              virnucpro.yaml if none is named; its input and output are left out
  --classifier FILE          VirNucPro's 500_model.pth (--model.classifier)
  --model.esm2.weights FILE  and --model.dnabert_s.weights: where the published weights are
  --trainer.accelerator A    auto (a GPU where there is one), cuda or cpu
  --trainer.devices N        GPUs; for more than one also give --trainer.strategy ddp
  --trainer.precision P      16-mixed, bf16-mixed or 32

exit codes: 0 every limit is kept; 1 one is not, and a sentence says what that usually means;
else as predict.

example:
  virnucpro-pl verify --classifier 500_model.pth
"""


def asks_help(words: Sequence[str]) -> bool:
    """Tell whether a command line asks for help."""
    return "-h" in words or "--help" in words


def help_page(words: Sequence[str]) -> str | None:
    """The page that a command line asks for, if it is one that needs no import.

    Args:
        words: The command line; an empty one asks for the overview.
    """
    if words in ([], ["-h"], ["--help"]):
        commands = "\n".join(f"  {name:<9} {command.use}" for name, command in COMMANDS.items())
        return _OVERVIEW.format(commands=commands, configs=_first_lines(config_files()))
    if words[0] == "verify" and (asks_help(words) or ALL in words):
        return _VERIFY
    if not asks_help(words) or ALL in words:
        return None
    if words[0] == "fit":
        return _FIT.format(configs=_first_lines(configs_for("fit")))
    if words[0] == "predict" and not config_names(words):
        short = {"INPUT...": INPUT, **ALIASES}
        aliases = "\n".join(f"  {name:<13} {option}" for name, option in short.items())
        return _PREDICT.format(configs=_first_lines(configs_for("predict")), aliases=aliases)
    return None


def _first_lines(configs: Iterable[Path]) -> str:
    """Each config with its first line, a comment that says what it is for."""
    lines = ((p.name, p.read_text(encoding="utf-8").partition("\n")[0]) for p in configs)
    return "\n".join(f"  {name:<22} {line.lstrip('# ')}" for name, line in lines)
