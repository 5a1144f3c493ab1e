"""Names of records where room is short: in titles and tables, and as names of files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from hashlib import sha256

_STEM_LETTERS = 60
_HASH_LETTERS = 10


def shortened(name: str, letters: int) -> str:
    """Cut a long name in the middle, since names often differ at their ends only.

    Args:
        name: A name.
        letters: How many it may have.
    """
    if len(name) <= letters:
        return name
    end = (letters - 1) // 2
    return f"{name[: letters - 1 - end]}…{name[-end:]}"


def file_names(records: Iterable[str]) -> dict[str, str]:
    """Names of files by record, without a suffix: letters, digits, and `.`, `_`, `-` only.

    A name that had to be changed or cut ends with a hash of the id. So does one that differs from
    an earlier one in small and capital letters alone, since some file systems do not tell them
    apart.

    Args:
        records: Ids, all different.
    """
    names: dict[str, str] = {}
    taken = set()
    for record in records:
        stem = re.sub(r"[^A-Za-z0-9._-]+", "_", record)[:_STEM_LETTERS]
        if stem != record or stem.lower() in taken:
            stem += "-" + sha256(record.encode()).hexdigest()[:_HASH_LETTERS]
        taken.add(stem.lower())
        names[record] = f"record_{stem}"
    return names
