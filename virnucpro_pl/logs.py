"""The program's log, and what other packages write that no user of this one can act on."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

from virnucpro_pl.errors import UsageError

log = logging.getLogger("virnucpro_pl")

_FORMAT = "%(asctime)s %(levelname)s %(message)s"
_LOG_LINE = re.compile(rb"\d{4}-\d\d-\d\d ")
"""How each line of a log file begins."""
_ADVERTISES = "lightning.pytorch.utilities.rank_zero"


class _StandardError(logging.StreamHandler[Any]):
    """Writes to what is standard error at the time: while there is a bar, above it."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class LogFile(logging.FileHandler):
    """Writes to a file that is new, empty or a log already, and gives up where it cannot."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            UsageError: If it is something else, or cannot be written.
        """
        try:
            if path.exists() and not path.is_file():
                raise UsageError(f"--log_file {path} is no file")
            if path.exists() and not _LOG_LINE.match(_head(path)):
                raise UsageError(f"--log_file {path} is no log: name another file")
            super().__init__(path, encoding="utf-8")
        except OSError as error:
            raise UsageError(f"--log_file {path} cannot be written: {error.strerror}") from error

    def handleError(self, record: logging.LogRecord) -> None:
        """Say once that the file cannot be written any more, as where the disk is full."""
        log.removeHandler(self)
        log.warning("--log_file %s cannot be written: %s", self.baseFilename, sys.exc_info()[1])


def start_log(*, verbose: bool = False, file: Path | None = None) -> None:
    """Write the log to standard error, and to a file where one is asked for.

    Rank 0 speaks for all; what goes wrong on another rank is said by that one.

    Args:
        verbose: Whether to say more, such as the time of each phase and how full packs are.
        file: File to which the log is written as well, behind what is there already.

    Raises:
        UsageError: If it cannot be written, or is no log.
    """
    handlers: list[logging.Handler] = [_StandardError()]
    if file is not None:
        handlers.append(LogFile(file))
    for handler in handlers:
        dates = "%H:%M:%S" if handler is handlers[0] else "%Y-%m-%d %H:%M:%S"
        handler.setFormatter(logging.Formatter(_FORMAT, dates))
    for handler in log.handlers:
        handler.close()
    log.handlers[:] = handlers
    level = logging.DEBUG if verbose else logging.INFO
    log.setLevel(level if os.environ.get("LOCAL_RANK", "0") == "0" else logging.WARNING)
    log.propagate = False


def log_files() -> list[Path]:
    """The files to which the log is written."""
    return [Path(h.baseFilename) for h in log.handlers if isinstance(h, LogFile)]


def start_log_from_python() -> None:
    """Write the log to standard error in a program that has set up no logging of its own."""
    if not log.hasHandlers() and log.level == logging.NOTSET:
        start_log()


def silence_others() -> None:
    """Keep Lightning's adverts, and its deprecated calls of torch, from standard error."""
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*")
    logging.getLogger(_ADVERTISES).addFilter(_is_no_advert)


def _head(path: Path) -> bytes:
    """The beginning of a file; of an empty one, that of a log."""
    with path.open("rb") as file:
        return file.read(32) or b"2000-01-01 "


def _is_no_advert(record: logging.LogRecord) -> bool:
    return "Tip: For seamless" not in str(record.msg)
