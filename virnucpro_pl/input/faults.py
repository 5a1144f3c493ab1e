"""What is wrong with the records of an input, collected to be reported together."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from virnucpro_pl.errors import MAX_LISTED, InputError

_SHOWN = 60
"""Characters of an id that a message shows."""


def first_word(header: str) -> bytes:
    """The id in a header; blanks before it mean nothing."""
    words = header.encode("latin-1").split(None, 1)
    return words[0] if words else b""


def name_record(number: int, identifier: bytes = b"", word: str = "record") -> str:
    """A record in a message, by its number in its file, from 1, and its id if it has one."""
    text = identifier.decode(errors="replace")
    short = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    return f"{word} {number} ({short})" if identifier else f"{word} {number}"


class Faults:
    """What is wrong with records, in the order of the records; only the first ones are kept.

    Attributes:
        count: How many faults there are.
    """

    def __init__(self, files: Sequence[str]) -> None:
        """Begin without any.

        Args:
            files: What messages call each file of the input.
        """
        self.count = 0
        self._advice: list[str] = []
        self._files = files
        self._starts: list[int] = []
        self._first: list[tuple[int, bytes, str]] = []

    def begin_file(self, row: int) -> None:
        """Tell that the next file begins with a row, counted from 0 in the input."""
        self._starts.append(row)

    def add(self, row: int, identifier: bytes, what: str, advice: str = "") -> None:
        """Add what is wrong with a record, in any order.

        Args:
            row: Its number in the input, from 0.
            identifier: Its id.
            what: The fault.
            advice: What to do about all such faults, if it is to be said; it is said once.
        """
        self.count += 1
        if advice and advice not in self._advice:
            self._advice.append(advice)
        self._first.append((row, identifier, what))
        if len(self._first) > 50 * MAX_LISTED:
            self._cut()

    def place(self, row: int, identifier: bytes = b"") -> str:
        """A record in a message, by its number in its file, and by its file if there are several.

        Args:
            row: Its number in the input, from 0.
            identifier: Its id.
        """
        file = bisect_right(self._starts, row) - 1
        record = name_record(row - self._starts[file] + 1, identifier)
        return record if len(self._files) == 1 else f"{record} of {self._files[file]}"

    def report(self) -> None:
        """Raise if there are any.

        Raises:
            InputError: With the first faults and their number.
        """
        if not self.count:
            return
        self._cut()
        who = f"{self._files[0]} has" if len(self._files) == 1 else "The inputs have"
        lines = [f"{who} {self.count} fault{'s' * (self.count > 1)}:"]
        lines += [f"{self.place(row, name)}: {what}" for row, name, what in self._first]
        more = self.count - len(self._first)
        lines += [f"and {more} more"] if more else []
        raise InputError("\n".join(["\n  ".join(lines), *self._advice]))

    def _cut(self) -> None:
        self._first.sort(key=lambda fault: (fault[0], fault[2]))
        del self._first[MAX_LISTED:]
