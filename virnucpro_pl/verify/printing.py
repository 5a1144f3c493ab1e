"""All checks as one table, for people."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from virnucpro_pl.verify.checks import Check

_MET = {True: "met", False: "NOT MET", None: "left out"}


def print_checks(checks: Iterable[Check]) -> None:
    """Print a table of all checks to stdout."""
    table = Table()
    for title in ("", "precision", "largest difference", "limit", ""):
        table.add_column(title, justify="right" if title in ("limit",) else "left")
    for check in checks:
        row = check.quantity, check.precision, check.found, check.limit, _MET[check.met]
        table.add_row(*row)
    Console(file=sys.stdout, width=120, highlight=False, markup=False, emoji=False).print(table)
