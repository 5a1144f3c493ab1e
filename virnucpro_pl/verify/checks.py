"""The outputs of a run beside the reference: what differs, by how much, and what that means."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro_pl.embeddings.embedding_file import load_embeddings
from virnucpro_pl.verify.reference import CONTIGS, Reference

FP32 = "32-true"
Part = Literal["ORFs", "DNABERT-S", "ESM-2", "classifier"]
"""What may be at fault."""

# BF16 has three bits less than FP16, which makes roundings eight times as large.
_LIMITS = {"64": (1e-4, 1e-3), "32": (1e-4, 1e-3), "16": (5e-3, 1e-2), "bf16": (5e-2, 1e-1)}
"""By the first word of a precision: of a vector ||found - expected|| / ||expected||, and of a score
|found - expected|."""


class Check(NamedTuple):
    """One quantity of one run, beside the reference."""

    part: Part
    quantity: str
    found: str
    """The largest difference, or why there is none."""
    limit: str
    met: bool | None
    """None if it was left out."""
    precision: str = ""


def check_run(folder: Path, precision: str, reference: Reference) -> list[Check]:
    """Compare all outputs of a run on the contigs with the reference.

    Args:
        folder: Output of a TableWriter that has saved embeddings and ORFs.
        precision: What the run computed in, in Lightning's spelling.
        reference: What to expect.

    Returns:
        A check of each quantity. The vectors of another ESM-2 than the reference's are left out,
        and so are the scores without them or without a classifier.

    Raises:
        InputError: If an embedding file is damaged.
    """
    for_vectors, for_scores = _LIMITS[precision.partition("-")[0]]
    dna = _read_fasta(folder / f"{CONTIGS.stem}_identified_nucleotide.fa")
    proteins = _read_fasta(folder / f"{CONTIGS.stem}_identified_protein.faa")
    lines = (folder / "prediction_results.txt").read_text(encoding="utf-8").splitlines()
    names, labels, *scores = zip(*(line.split("\t") for line in lines[1:]), strict=True)
    found = np.array(scores).T
    checks = [
        _equal("ORFs", "ids", names, reference.ids),
        _equal("ORFs", "nucleotides", dna, zip(reference.ids, reference.nucleotides, strict=True)),
        _equal("ORFs", "proteins", proteins, zip(reference.ids, reference.proteins, strict=True)),
        _vectors("DNABERT-S", folder / "dnabert_s.h5", reference, reference.dnabert_s, for_vectors),
        _vectors("ESM-2", folder / "esm2.h5", reference, reference.esm2, for_vectors),
    ]
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    why = checks[-1].found if checks[-1].met is None else ""
    if summary["classifier"] == "random":
        why = "no classifier"
    if why:
        checks += [Check("classifier", name, why, "", None) for name in ("scores", "labels")]
    else:
        found = np.where(found == "NA", "nan", found).astype(np.float32)
        same = list(names) == reference.ids
        largest = float(np.abs(found - reference.scores).max()) if same else np.nan
        checks.append(_within("classifier", "scores", largest, for_scores))
        checks.append(_equal("classifier", "labels", labels, reference.labels))
    return [check._replace(precision=precision) for check in checks]


def explain(checks: Sequence[Check]) -> str | None:
    """Say which part differs and what that usually means; None if every limit is kept.

    Args:
        checks: Of a run in FP32, and perhaps of one in another precision.
    """
    failed = [check for check in checks if check.met is False]
    parts, exact = _parts(failed), _parts(check for check in failed if check.precision == FP32)
    encoders = [part for part in exact if part != "classifier"]
    if not failed:
        return None
    if "ORFs" in parts:
        return (
            "The ORFs or their ids differ, which no weights can cause: usually this installation "
            "is damaged, or an option of the data is another"
        )
    if encoders:
        return (
            f"The vectors of {' and '.join(encoders)} differ, in FP32 too: usually the weights are "
            "not the published ones, or another layer is pooled (see --model.esm2 and "
            "--model.dnabert_s); if neither is so, the card may be broken"
        )
    if exact:
        return (
            "The scores differ though the embeddings do not: usually it is another classifier "
            "than 500_model.pth, such as the one for 300 bases"
        )
    return (
        f"The numbers of {' and '.join(parts)} differ in {failed[0].precision}, but not in FP32: "
        "usually the card or its driver is broken, or cannot do with this precision; "
        "VIRNUCPRO_DISABLE_FP16=1 or --trainer.precision 32 gives right numbers"
    )


def _parts(checks: Iterable[Check]) -> list[str]:
    return list(dict.fromkeys(check.part for check in checks))


def _equal(part: Part, quantity: str, found: Iterable[object], expected: Iterable[object]) -> Check:
    same = [a == b for a, b in zip_longest(found, expected)]
    return Check(part, quantity, f"{same.count(False)} of {len(same)}", "0", all(same))


def _within(part: Part, quantity: str, found: float, limit: float) -> Check:
    return Check(part, quantity, f"{found:.2g}", f"{limit:g}", bool(found <= limit))  # NaN is not


def _vectors(
    part: Part, path: Path, reference: Reference, expected: NDArray[np.float32], limit: float
) -> Check:
    quantity, width = f"{part} vectors", expected.shape[1]
    with load_embeddings(path) as file:
        ids, model, found = file.ids, str(file.attributes["model"]), file[:]
    if part == "ESM-2" and model != reference.esm2_name:
        return Check(part, quantity, f"{model}, not {reference.esm2_name}", "", None)
    if ids != reference.ids:
        return Check("ORFs", quantity, "other ids", f"{limit:g}", False)
    if found.shape[1] != width:
        return Check(part, quantity, f"{found.shape[1]} numbers", f"{width} numbers", False)
    distances = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    return _within(part, quantity, float(distances.max()), limit)


def _read_fasta(path: Path) -> list[tuple[str, str]]:
    """Id and letters of each ORF, which are one line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [(name[1:], letters) for name, letters in zip(lines[::2], lines[1::2], strict=True)]
