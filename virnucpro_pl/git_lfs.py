"""Git LFS pointers: what lies in a clone in place of a large file that was never fetched."""

from __future__ import annotations

from pathlib import Path

from virnucpro_pl.errors import WeightsError

_FIRST_LINE = b"version https://git-lfs.github.com/spec/v1"


def refuse_pointer(path: Path) -> None:
    """Say of a pointer that it is one, and how to fetch the file that it stands for.

    Raises:
        WeightsError: If the file is one.
        OSError: If it cannot be read.
    """
    with path.open("rb") as file:
        if file.read(len(_FIRST_LINE)) == _FIRST_LINE:
            raise WeightsError(
                f"{path} is a Git LFS pointer, not the file itself: fetch that with `git lfs pull` "
                f"in {path.parent}"
            )
