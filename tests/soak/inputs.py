"""Spoilt sequence files: exactly the records of a strict reader, or exit code 2 and why."""

import logging
import random
from pathlib import Path

import h5py
import numpy as np

from tests.soak import strict_reader, tiny
from tests.soak.children import run_cases
from tests.soak.mutations import Case, draw_case
from virnucpro_pl.cli.main import main
from virnucpro_pl.cli.predict import predict  # noqa: F401 - imported once, not in each child
from virnucpro_pl.errors import InputError
from virnucpro_pl.input.alphabets import DNA, PRINTABLE, PROTEIN
from virnucpro_pl.input.reader import read_records

CASES = 200
MEMORY = 2 << 30
"""Bytes that the reading of a file may take."""
ALPHABETS = {"protein": PROTEIN, "dna": DNA, "contigs": DNA, "original": PRINTABLE}
Records = list[tuple[str, bytes]]


def trial(seed: int, folder: Path) -> dict:
    """Read spoilt files, all but the last by the function that reads them, that by the command."""

    def check(number: int, place: Path) -> str | None:
        case = draw_case(random.Random(f"input {seed} {number}"))
        paths = write(case, place)
        run = check_command if number == CASES - 1 else check_reader
        wrong = run(case, paths, place)
        if wrong:
            (place / "case.txt").write_text(f"{case.what}\n{case.options}\n{wrong}\n")
        return f"{case.what}; {case.options}: {wrong}" if wrong else None

    found = run_cases(check, CASES, folder, MEMORY)
    return {"ok": not found, "what": "spoilt sequence files", "count": CASES, "found": found}


def write(case: Case, place: Path) -> list[Path]:
    paths = [place / f"in put{i}.{suffix}" for i, suffix in enumerate(case.suffixes)]
    for path, data in zip(paths, case.files, strict=True):
        path.write_bytes(data)
    return paths


def expected(case: Case) -> list[Records | None]:
    """What is right: the records, or None for a refusal.

    Where bytes of compressed data were changed and its checksum still holds, as in a time stamp,
    the records of before are right, too.
    """
    right: list[Records | None] = []
    for files in (case.files, case.untouched):
        try:
            right.append(strict_reader.read(files, case.options))
        except strict_reader.Refused:
            right.append(None)
    return [*right, None] if case.may_refuse else right


def check_reader(case: Case, paths: list[Path], place: Path) -> str | None:
    options, in_table = case.options, case.options.letters in strict_reader.TABLES
    right = expected(case)
    logging.disable()
    store_folder = place / "store"
    store_folder.mkdir()
    try:
        store = read_records(
            paths,
            ALPHABETS[options.letters],
            store_folder,
            allow_empty=options.allow_empty,
            allow_empty_records=in_table,
            check_molecule=options.check_molecule,
            repeated_ids=options.repeated_ids,
            min_length=0 if in_table else options.min_length,
        )
    except InputError as error:
        if not any(path.name in str(error) for path in paths):
            return f"no file is named in: {error}"
        return None if None in right else f"refused: {error}, but {shown(right)} expected"
    rows = np.arange(len(store))
    got = list(zip(store.ids(rows), store.sequences(rows), strict=True))
    return None if got in right else f"read {shown([got])}, but {shown(right)} expected"


def shown(records: list[Records | None]) -> str:
    """Records in a message, not all of them."""
    return repr(records) if len(repr(records)) < 1000 else f"{repr(records)[:1000]}..."


def check_command(case: Case, paths: list[Path], place: Path) -> str | None:
    """Run the command itself, and look at its exit code and its output."""
    options = case.options._replace(check_molecule=True)
    right = expected(case._replace(options=options))
    output = place / "out"
    logging.disable(logging.NOTSET)
    words = ["predict", *map(str, paths), "-o", str(output), *model_words(options, place)]
    words += ["--data.repeated_ids", options.repeated_ids, "--data.min_length"]
    words += [str(options.min_length), "--data.allow_empty", str(options.allow_empty).lower()]
    words += ["--data.num_workers", "0", "--trainer.accelerator", "cpu"]
    words += ["--trainer.precision", "32", "--trainer.enable_progress_bar", "false"]
    try:
        main(words)
        code = 0
    except SystemExit as end:
        code = end.code
    if code == 2 and not output.exists():
        return None if None in right else f"exit code 2, but {right} expected"
    if code or not output.exists():
        return f"exit code {code}, {list(place.iterdir())}"
    shape = [r and [(name, len(letters)) for name, letters in r] for r in right]
    if options.letters in ("protein", "dna"):
        with h5py.File(output) as file:
            ids, lengths = file["sequence_ids"].asstr()[:], file["lengths"][:]
            got = list(zip(ids.tolist(), lengths.tolist(), strict=True))
    else:
        header, *lines = (output / "contigs.tsv").read_text().splitlines()
        columns = header.split("\t")
        table = [dict(zip(columns, line.split("\t"), strict=True)) for line in lines]
        got = [(row["seq_name"], int(row["length"])) for row in table]
    return None if got in shape else f"wrote {got}, but {shape} expected"


def model_words(options: strict_reader.Options, place: Path) -> list[str]:
    """Tiny models for a command."""
    if options.letters == "protein":
        weights = tiny.save_esm2(place / "esm2.pt")
        return ["--config", "esm2.yaml", "--model.weights", str(weights)]
    dnabert_s = str(tiny.save_dnabert_s(place / "dnabert_s"))
    if options.letters == "dna":
        return ["--config", "dnabert_s.yaml", "--model.weights", dnabert_s]
    words = ["--config", "virnucpro.yaml", "--model.classifier", "random"]
    words += ["--model.dnabert_s.weights", dnabert_s]
    words += ["--model.esm2.weights", str(tiny.save_esm2(place / "esm2.pt"))]
    return [*words, "--data.letters", "original" if options.letters == "original" else "iupac"]
