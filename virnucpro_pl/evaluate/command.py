"""`virnucpro-pl evaluate`: how right results are, by records with a known label."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from virnucpro_pl.errors import UsageError
from virnucpro_pl.evaluate.contig_table import ContigTable
from virnucpro_pl.evaluate.evaluation import evaluate_results
from virnucpro_pl.evaluate.folder import check_folder, write_folder
from virnucpro_pl.evaluate.printing import print_evaluation
from virnucpro_pl.evaluate.truth_table import TruthTable

log = logging.getLogger(__name__)


def evaluate(results: Path, *, truth: Path, output: Path | None = None) -> None:
    """Tell how right results of contigs are, by records whose label is known.

    Measured are predictions and scores, all and by length; calls and tiers; and, where the results
    have them, probabilities and false discovery rates. Records without a label, and labels without
    a record, are counted and named. Exit code 0: it was measured, however right the results are;
    2: bad usage or a damaged table, or no record has both.

    Args:
        results: Folder that predict has written of contigs, or its contigs.tsv.
        truth: Tab-separated table with a header and the columns seq_name and label, plain or
            compressed. A label is virus, viral, 1 or true, or else others, 0 or false.
        output: Folder to write: evaluation.json with all figures, the same as tables, and the ids
            of all records that miss, in missing.tsv. An earlier evaluation in it is replaced.

    Raises:
        UsageError: If there is nothing that could be measured, or the options cannot be followed.
        OutputError: If the folder cannot be written.
    """
    contigs = ContigTable(results)
    if not truth.exists():
        raise UsageError(f"--truth {truth}: no such file")
    if output is not None:
        check_folder(output, results, [contigs.path, truth])
    with tempfile.TemporaryDirectory(prefix="virnucpro-pl-") as scratch:
        result = evaluate_results(contigs, TruthTable(truth), Path(scratch))
        if output is not None:
            write_folder(output, result)
        print_evaluation(result)
    if output is not None:
        log.info("Wrote %s", output)
