"""How many records, chunks and open reading frames came to what: `summary.json` and the last line.

Every one of them is accounted for: the parts of each ledger add up to all.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro_pl.errors import listed
from virnucpro_pl.output.chunk_table import NOT_SAMPLED, is_scored
from virnucpro_pl.output.contig_rule import CALLS, TIERS
from virnucpro_pl.output.tables import STATUSES, ContigCalls

log = logging.getLogger(__name__)


def orf_ledger(scores: NDArray[np.float32]) -> dict[str, Any]:
    """Account for every ORF: scored and skipped ones add up to all."""
    scored = int(is_scored(scores).sum())
    return {
        "orfs": len(scores),
        "orfs_scored": scored,
        "orfs_skipped": {"embedding_not_finite": len(scores) - scored},
    }


def record_ledger(calls: ContigCalls) -> dict[str, Any]:
    """Account for every record and chunk: the parts of each add up to all."""
    chunks, with_orf = int(calls.n_chunks.sum()), int(calls.n_orf_chunks.sum())
    sampled, scored = int(calls.n_sampled.sum()), int(calls.n_scored_chunks.sum())
    by_status = _counted(STATUSES, calls.status)
    viruses, has_score = int(calls.is_virus.sum()), by_status["ok"]
    partly = (calls.n_scored_orfs > 0) & (calls.n_scored_orfs < calls.n_orfs)
    return {
        "records": len(calls.lengths),
        "records_scored_in_part": int(partly.sum()),
        "records_sampled": int((calls.n_sampled < calls.n_chunks).sum()),
        "records_by_status": by_status,
        "records_by_prediction": {
            "virus": viruses,
            "others": has_score - viruses,
            "NA": len(calls.lengths) - has_score,
        },
        "records_by_call": _counted(CALLS, calls.rule.call),
        "records_by_tier": _counted(TIERS, calls.rule.tier),
        "chunks": chunks,
        "share_of_chunks_computed": sampled / chunks if chunks else 1.0,
        "chunks_by_status": {
            "ok": scored,
            "no_orf": sampled - with_orf,
            "failed": with_orf - scored,
            NOT_SAMPLED: chunks - sampled,
        },
    }


def _counted(names: Sequence[str], numbers: NDArray[np.int8]) -> dict[str, int]:
    """How often each name stands among indices into them."""
    return dict(zip(names, np.bincount(numbers, minlength=len(names)).tolist(), strict=True))


def orf_result(scores: NDArray[np.float32]) -> str:
    """How many ORFs have which label, as in `prediction_results.txt`."""
    scored = is_scored(scores)
    viruses = int((scores[scored, 1] > scores[scored, 0]).sum())
    others = int(scored.sum()) - viruses
    return _counts("open reading frames", viruses, others, len(scores) - viruses - others)


def record_result(ledger: dict[str, Any]) -> str:
    """How many records are called what, as in `contigs.tsv`."""
    counts = ledger["records_by_prediction"]
    return _counts("records", counts["virus"], counts["others"], counts["NA"])


def _counts(unit: str, viruses: int, others: int, without: int) -> str:
    count = viruses + others + without
    return f"{count:,} {unit}: {viruses:,} virus, {others:,} others, {without:,} without a score"


def write_summary(
    path: Path,
    ledger: dict[str, Any],
    *,
    called_by: dict[str, float | None],
    provenance: dict[str, Any],
    config: str,
) -> None:
    """Write `summary.json`; what a reader must know before anything else goes to the log, too.

    Args:
        path: The file to write.
        ledger: What there is of everything.
        called_by: What decides whether a record is called virus.
        provenance: What was run.
        config: The resolved configuration.
    """
    warnings = _warnings(ledger)
    for warning in warnings:
        log.warning("%s", warning)
    content = {
        "warnings": _random_weights(provenance) + warnings,  # of those the log has told before
        **ledger,
        **called_by,
        **provenance,
        "config": config,
    }
    path.write_text(f"{json.dumps(content, indent=2)}\n", encoding="utf-8")


def _random_weights(provenance: dict[str, Any]) -> list[str]:
    """That weights are random, if any are."""
    random = [str(value) for value in provenance.values() if str(value).startswith("random:")]
    names = listed([value.split(":")[1] for value in random])
    return [f"These calls mean nothing: RANDOM weights of {names}"] if random else []


def _warnings(ledger: dict[str, Any]) -> list[str]:
    """What a reader of the tables must know of the rows before anything else."""
    warnings = []
    if lost := ledger["orfs_skipped"]["embedding_not_finite"]:
        warnings.append(
            f"{lost} of {ledger['orfs']} ORFs have no score (NA in the tables), since their "
            "embeddings are not finite"
        )
    if partly := ledger.get("records_scored_in_part"):
        warnings.append(f"{partly} records are called without some of their ORFs")
    if sampled := ledger.get("records_sampled"):
        share = ledger["share_of_chunks_computed"]
        warnings.append(
            f"{sampled} records are called by a sample of their chunks (--data.max_chunks), and "
            "regions are not looked for in them, since one could hide between the chunks of a "
            f"sample; {100 * share:.3g} % of all chunks were computed"
        )
    return warnings
