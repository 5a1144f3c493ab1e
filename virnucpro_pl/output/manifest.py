"""What the parts of a run depend on, written beside them: without it nobody trusts them."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from virnucpro_pl.errors import OutputError, UsageError
from virnucpro_pl.output.atomic_files import write_json

_MAY_DIFFER = re.compile(
    r"(attention|on_instability)(_\w+)?|weights(_dnabert_s|_esm2)?|classifier"
    r"|package_version|torch_version|run"
)
"""What an interrupted run and its continuation need not have in common: a file's name, for example,
since the hash of its content counts."""

Provenance = Callable[[], dict[str, Any]]
"""Gives what rows depend on; waits for the hash of the weights."""


class Manifest:
    """The file that a run writes once. On rank 0 only.

    Attributes:
        path: The file.
        run: Name of the run, the same in its parts and once it goes on: what parts hold does not
            say which weights they are of, and a part may come from anywhere.
    """

    def __init__(self, folder: Path) -> None:
        """Name the file; nothing is touched yet.

        Args:
            folder: Where the parts are.
        """
        self.path = folder / "manifest.json"
        self.run = ""
        self._written = False
        self._closed = False
        self._lock = threading.Lock()
        self._begun: tuple[threading.Thread, Provenance] | None = None

    def read(self) -> dict[str, Any]:
        """Read what an earlier run wrote.

        Raises:
            UsageError: If it is damaged.
        """
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if not isinstance(content, dict):
                raise ValueError("it holds something else")
        except (ValueError, RecursionError) as error:
            raise UsageError(
                f"{self.path} is damaged ({error}), so that nobody knows what the parts beside it "
                "are of: start over with --writer.overwrite true"
            ) from error
        return content

    def check_same_run(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        """Refuse to go on with rows that depend on anything else.

        Raises:
            UsageError: With all that differs.
        """
        now = json.loads(json.dumps(now))  # as it was written: a list and a tuple are the same
        different = [
            f"{key} was {before.get(key)!r} and is {now.get(key)!r}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key) and not _MAY_DIFFER.fullmatch(key)
        ]
        if different:
            raise UsageError(
                f"{self.path.parent} holds parts of another run: {'; '.join(different)}. "
                "Give back what it was, name another --writer.path, or start over with "
                "--writer.overwrite true"
            )

    def check_same_policy(self, before: dict[str, Any], now: dict[str, Any], failed: int) -> None:
        """Refuse to go on with so many rows that were left out under another policy.

        Raises:
            UsageError: If there are any, and the policy is another.
        """
        for key in sorted(key for key in now if key.startswith("on_instability")):
            if failed and before.get(key) != now[key]:
                raise UsageError(
                    f"{self.path.parent} holds {failed} rows that were left out since they "
                    f"failed: {key} was {before.get(key)!r} and is {now[key]!r}. Give back what it "
                    "was, or start over with --writer.overwrite true"
                )

    def write(self, provenance: Provenance) -> None:
        """Tell a continuation what the parts depend on; once."""
        if self._written:
            return
        content = {**provenance(), **({"run": self.run} if self.run else {})}
        with self._lock:
            if not self._written and not self._closed:
                write_json(self.path, content)
                self._written = True

    def write_soon(self, provenance: Provenance) -> None:
        """Do so from a thread, since the hash of the weights may take a while.

        Until it is there the parts are not trusted, but nobody waits for it: a rank that does could
        not follow a signal.
        """

        def write() -> None:
            with contextlib.suppress(OSError, UsageError):  # the next commit tells why not
                self.write(provenance)

        thread = threading.Thread(target=write, name="manifest", daemon=True)
        self._begun = thread, provenance
        thread.start()

    def wait(self, seconds: float = 0.0) -> None:
        """Wait so long for the thread, if there is one; where it has failed, do its work.

        Raises:
            OutputError: If the manifest cannot be written.
            UsageError: If the weights are not what they should be.
        """
        if self._begun is None:
            return  # nothing of this run can have been committed
        thread, provenance = self._begun
        thread.join(seconds)
        if thread.is_alive():
            return
        try:
            self.write(provenance)
        except OSError as error:
            raise OutputError(
                f"{self.path.parent} cannot be written: {error}. Make room and run the same "
                "command again"
            ) from error

    def close(self) -> None:
        """Keep the thread, which may still wait for a hash, from writing any more."""
        with self._lock:
            self._closed = True
