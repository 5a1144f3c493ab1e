"""Sequence files, read once and validated to the last letter, into a store of records."""

from __future__ import annotations

import logging
from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from virnucpro_pl.errors import InputError, UsageError, listed
from virnucpro_pl.input.alphabets import Alphabet
from virnucpro_pl.input.faults import Faults
from virnucpro_pl.input.files import records_of, refuse_repeated_files, shown
from virnucpro_pl.input.records import SHORTER, RecordStore, StoreWriter, change_store
from virnucpro_pl.input.repeated_ids import RepeatedIds, number_repeated, numbered_ids
from virnucpro_pl.input.validator import Validator

log = logging.getLogger(__name__)

_RENAMED = "repeated_ids_renamed"
"""What the number of records is called whose ids have got a number."""


def read_records(
    paths: Path | Sequence[Path],
    alphabet: Alphabet,
    folder: Path,
    *,
    allow_empty: bool = False,
    allow_empty_records: bool = False,
    check_molecule: bool = True,
    repeated_ids: RepeatedIds = "error",
    min_length: int = 0,
) -> RecordStore:
    """Read and validate FASTA or FASTQ files, plain or compressed, or unmapped BAM, CRAM or SAM.

    Ids are the first word of the header, in UTF-8; what stands behind it is not looked at, but for
    the number of a mate. Letters are made upper case; blanks within sequence lines are removed. All
    bad records are reported together.

    Args:
        paths: The file, or several in order; `files.STDIN` for standard input.
        alphabet: Letters that are accepted.
        folder: Existing folder for the store.
        allow_empty: Whether a file may have no records, and all records may be left out.
        allow_empty_records: Whether a record may have no letters.
        check_molecule: Whether to refuse proteins for DNA, and DNA for proteins.
        repeated_ids: What becomes of ids that occur more than once.
        min_length: Letters; shorter records are validated and then left out.

    Returns:
        The store.

    Raises:
        InputError: If a file is missing, damaged, empty, given twice, of no known format, of the
            other molecule, or any record has no id, no sequence, a letter that is refused, or the
            id of another record; if no record is left.
        UsageError: If the store cannot be written.
    """
    paths = [paths] if isinstance(paths, Path) else paths
    refuse_repeated_files(paths)
    names = [shown(path) for path in paths]
    faults = Faults(names)
    mates = array("b") if repeated_ids == "mates" else None
    empty = allow_empty_records or min_length > 0
    try:
        with StoreWriter(folder) as writer:
            validators = [Validator(p, alphabet, writer, faults, empty, mates) for p in paths]
            for path, validator in zip(paths, validators, strict=True):
                validator.read(records_of(path, folder))
                validator.check(allow_empty=allow_empty, molecule=check_molecule)
            store = _close(writer, validators)
        hashes, said = np.asarray(writer.hashes, np.int64), np.asarray(mates or [], np.int8)
        numbers = number_repeated(store, hashes, repeated_ids, said, faults)
        faults.report()
        store = _name_and_choose(store, numbers, repeated_ids, min_length)
    except OSError as error:  # of the store: the input's have become InputErrors
        raise UsageError(
            f"The records of {listed(names)} cannot be stored in {folder}: {error}"
        ) from error
    if not (len(store) or allow_empty):
        raise InputError(
            f"{listed(names)}: all records are shorter than --data.min_length {min_length}: give a "
            "smaller one, or --data.allow_empty true for an output without rows"
        )
    for validator in validators:
        validator.log_counts()
    _log_changes(listed(names), store, min_length)
    return store


def _close(writer: StoreWriter, validators: Sequence[Validator]) -> RecordStore:
    """Close the store; counts are those of all files together."""
    counts = Counter[str]()
    for validator in validators:
        counts.update(validator.counts())
    return writer.close([validator.file for validator in validators], dict(counts))


def _name_and_choose(
    store: RecordStore, numbers: NDArray[np.int64], rule: RepeatedIds, min_length: int
) -> RecordStore:
    """Put numbers behind repeated ids, and leave out what is too short.

    Short records are left out last, so that a read is named as one of a pair also where the other
    one is too short.
    """
    counts: dict[str, int] = {}
    renamed = int(np.count_nonzero(numbers))
    if rule != "error":
        counts[_RENAMED] = renamed
    kept = store.lengths >= min_length
    if min_length > 0:
        counts[SHORTER] = int(np.count_nonzero(~kept))
    if not counts:
        return store
    return change_store(
        store,
        ids=numbered_ids(store, numbers, rule) if renamed else None,
        kept=None if kept.all() else kept,
        counts=counts,
    )


def _log_changes(name: str, store: RecordStore, min_length: int) -> None:
    if renamed := store.counts.get(_RENAMED):
        log.info("%s: %d records with repeated ids are named anew", name, renamed)
    if short := store.counts.get(SHORTER):
        log.warning("%s: %d records of less than %d letters are left out", name, short, min_length)
