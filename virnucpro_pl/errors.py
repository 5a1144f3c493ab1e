"""The errors that end a run, each with the exit code that the command line gives it."""

from __future__ import annotations

MAX_LISTED = 20
"""How many offending records or ids a message names before it only counts."""


class ExpectedError(Exception):
    """Ends a run with an exit code of its own and, since its message says all, no traceback."""

    exit_code = 1


class UsageError(ExpectedError):
    """Bad usage, configuration, input or weights: nothing was computed."""

    exit_code = 2


class InputError(UsageError):
    """A sequence file that cannot be read completely and exactly."""


class WeightsError(UsageError):
    """Weights that are missing, damaged, or not of the model that was asked for."""


class OutputError(ExpectedError):
    """The output cannot be written, or does not hold every row; what is committed is kept."""


class UnwritableError(OutputError):
    """HDF5 could not write a file; it crashes if the process then ends in the ordinary way."""


class WorkerError(ExpectedError):
    """A process that prepares a rank's batches is gone; what is committed is kept."""


class GateError(ExpectedError):
    """Numbers are further apart than `compare` or `verify` accepts."""


class TooLargeError(ExpectedError):
    """A single sequence that the device has no memory for.

    Attributes:
        sequence_ids: Its id.
    """

    def __init__(self, message: str, sequence_ids: list[str]) -> None:
        """Keep the id beside the message.

        Args:
            message: Names model, sequence and length.
            sequence_ids: Its id.
        """
        super().__init__(message)
        self.sequence_ids = sequence_ids


class PeerError(ExpectedError):
    """Another rank of this run failed, was interrupted, died or stalled.

    Attributes:
        exit_code: The code with which that rank, and so the whole run, ends.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        """Keep the code of the rank that failed first.

        Args:
            message: Names the rank and what happened to it.
            exit_code: Exit code of the run.
        """
        super().__init__(message)
        self.exit_code = exit_code


def is_out_of_memory(error: BaseException) -> bool:
    """Tell a lack of memory, on whatever device, from other errors.

    torch raises a class of its own on a GPU, a plain RuntimeError on a CPU and from cuBLAS.
    """
    text = str(error).lower()
    words = ("out of memory", "can't allocate memory", "cannot allocate memory", "alloc_failed")
    return isinstance(error, MemoryError) or any(word in text for word in words)


def listed(names: list[str], limit: int = MAX_LISTED) -> str:
    """Join names for a message: the first `limit` of them, then how many more there are."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
