"""The command `virnucpro-pl`: it answers what it can at once, and imports the command for the rest.

Importing Lightning takes seconds, so nothing is imported here that imports Lightning or torch.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from virnucpro_pl.cli.checks import check_configs, check_no_config, check_values
from virnucpro_pl.cli.help import ALL, COMMANDS, asks_help, help_page
from virnucpro_pl.cli.light_torchmetrics import lighten_torchmetrics
from virnucpro_pl.cli.shipped import with_shipped_configs
from virnucpro_pl.cli.short_form import expand, expand_verify
from virnucpro_pl.cores import let_waiting_threads_sleep
from virnucpro_pl.errors import ExpectedError, UnwritableError, UsageError
from virnucpro_pl.logs import start_log
from virnucpro_pl.output.processes import (
    announce_rank_0,
    launched_by_rank_0,
    lost_another_rank,
    outlive_rank_0,
    watch_rank_0,
)
from virnucpro_pl.output.signals import Signals
from virnucpro_pl.version import __version__

log = logging.getLogger("virnucpro_pl")

_OF_DISKS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE, errno.EFBIG)
"""What a disk that fails or is full says, wherever that is."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command; the same for the console script, `python -m`, and tests.

    Args:
        args: Words of the command line; `sys.argv[1:]` by default.

    Raises:
        SystemExit: With the exit code, unless it is 0.
    """
    signals = Signals()
    signals.abrupt = True  # until the command itself begins
    signals.install()
    words = list(sys.argv[1:] if args is None else args)
    start_log()
    let_waiting_threads_sleep()
    announce_rank_0()
    watch_rank_0()
    try:
        words = _with_log_options(words)
        run = _command(words)
        signals.abrupt = False
        run()
    except Exception as error:
        code = _report(error)
        outlive_rank_0()
        if isinstance(error, UnwritableError):
            sys.stderr.flush()
            os._exit(code)
        raise SystemExit(code) from error
    except SystemExit as end:
        told = end.code or signals.code  # Lightning gives none where SIGTERM has stopped it
        if not told:
            raise
        outlive_rank_0()
        raise SystemExit(told) from end
    finally:
        signals.restore()


def _command(words: list[str]) -> Callable[[], None]:
    """Find what a command line asks for; whatever can be answered at once is.

    Raises:
        SystemExit: After help or the version.
        UsageError: If there is no such command, or it cannot be run with these options.
    """
    command = words[0] if words else "--help"
    if command == "--version":
        sys.stdout.write(f"virnucpro-pl {__version__}\n")
        raise SystemExit(0)
    if page := help_page(words):
        sys.stdout.write(page)
        raise SystemExit(0 if words else 2)
    if command.startswith("-"):
        raise UsageError(f"The command comes first: virnucpro-pl predict {command} ...")
    if command not in COMMANDS:
        raise UsageError(f"There is no command {command!r}; there are {', '.join(COMMANDS)}")
    path = f"{COMMANDS[command].module}:{command}"
    if command not in ("fit", "predict", "verify"):
        words = ["--help" if word == ALL else word for word in words]  # theirs is on one page
        check_values(words)
        check_no_config(words)
        call = _load("virnucpro_pl.cli.function_command:call", path)
        return partial(call, resolve_name(path), words)
    if ALL in words:
        return partial(load_with_lightning(path), [command, "--help"])
    short_forms = {"predict": expand, "verify": expand_verify}
    words = with_shipped_configs(short_forms.get(command, list)(words))
    if asks_help(words):
        return partial(load_with_lightning("virnucpro_pl.cli.class_help:print_class_help"), words)
    check_values(words)
    check_configs(words)
    return partial(load_with_lightning(path), words)


def _with_log_options(words: Sequence[str]) -> list[str]:
    """Set the log up as its options say, and give the other words.

    Raises:
        UsageError: If one has a wrong value.
    """
    others: list[str] = []
    verbose, file = False, None
    rest = iter(enumerate(words))
    for number, word in rest:
        option, equals, value = word.partition("=")
        if option == "--verbose":
            if value.lower() not in ("", "true", "false"):
                raise UsageError(f"--verbose must be true or false, not {value}")
            verbose = value.lower() != "false"
            if not equals and next(iter(words[number + 1 :]), "") in ("true", "false"):
                verbose = next(rest)[1] == "true"
        elif option in ("--log_file", "--log-file"):
            file = value if equals else next(rest, (0, ""))[1]
            if not file or file.startswith("-"):
                raise UsageError("--log_file has no value: write the name of a file behind it")
        else:
            others.append(word)
    start_log(verbose=verbose, file=Path(file) if file else None)
    return others


def load_with_lightning(path: str) -> Any:
    """Import a function of a command that needs Lightning, and as little besides as can be.

    Args:
        path: Its module, a colon and its name.
    """
    lighten_torchmetrics()
    return _load(path)


def _load(path: str, *others: str) -> Any:
    """Import functions, and with them whatever they need; the first of them.

    Args:
        path: Its module, a colon and its name.
        others: The same of others.
    """
    function, *_ = map(resolve_name, (path, *others))
    if not gc.isenabled():  # see __main__
        gc.freeze()  # what is imported stays, and need not be looked at in any later collection
        gc.enable()
    # What Lightning says of itself is nothing that a user of this command can act on.
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return function


def _report(error: Exception) -> int:
    """Say what has ended the run; the exit code."""
    if lost_another_rank(error):
        log.error("Another rank is gone: %s", str(error).partition("\n")[0])
    elif isinstance(error, ExpectedError):
        if not launched_by_rank_0():
            log.error("%s", error)
    elif isinstance(error, OSError) and error.errno in _OF_DISKS:
        log.error("A disk has failed: %s", error)
    else:  # nobody foresaw it: the traceback is wanted, and at once
        traceback.print_exc()
        return 1
    for note in getattr(error, "__notes__", ()):  # a traceback ends with them
        log.warning("%s", note)
    return error.exit_code if isinstance(error, ExpectedError) else 1
