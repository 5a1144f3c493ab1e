"""The program's log, and what other packages write that no user of this one can act on."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from virnucpro_pl.errors import UsageError

log = logging.getLogger("virnucpro_pl")

_FORMAT = "%(asctime)s %(levelname)s %(message)s"
_ADVERTISES = "lightning.pytorch.utilities.rank_zero"


class _StandardError(logging.StreamHandler[Any]):
    """Writes to what is standard error at the time: while there is a bar, above it."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def start_log(*, verbose: bool = False, file: Path | None = None) -> None:
    """Write the log to standard error, and to a file where one is asked for.

    Rank 0 speaks for all; what goes wrong on another rank is said by that one.

    Args:
        verbose: Whether to say more, such as the time of each phase and how full packs are.
        file: File to which the log is written as well, behind what is there already.

    Raises:
        UsageError: If it cannot be written.
    """
    handlers: list[logging.Handler] = [_StandardError()]
    if file is not None:
        try:
            handlers.append(logging.FileHandler(file, encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"--log_file {file} cannot be written: {error.strerror}") from error
    for handler in handlers:
        dates = "%H:%M:%S" if handler is handlers[0] else "%Y-%m-%d %H:%M:%S"
        handler.setFormatter(logging.Formatter(_FORMAT, dates))
    for handler in log.handlers:
        handler.close()
    log.handlers[:] = handlers
    level = logging.DEBUG if verbose else logging.INFO
    log.setLevel(level if os.environ.get("LOCAL_RANK", "0") == "0" else logging.WARNING)
    log.propagate = False


def start_log_from_python() -> None:
    """Write the log to standard error in a program that has set up no logging of its own."""
    if not log.hasHandlers() and log.level == logging.NOTSET:
        start_log()


def silence_others() -> None:
    """Keep Lightning's adverts, and its deprecated calls of torch, from standard error."""
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*")
    logging.getLogger(_ADVERTISES).addFilter(_is_no_advert)


def _is_no_advert(record: logging.LogRecord) -> bool:
    return "Tip: For seamless" not in str(record.msg)
