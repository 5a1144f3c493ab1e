"""The command `virnucpro-pl`, also as `python -m virnucpro_pl`."""

from __future__ import annotations

import gc
from collections.abc import Sequence

from virnucpro_pl.cli import main as command


def main(args: Sequence[str] | None = None) -> None:
    """Run the command without garbage collection during its imports.

    Some 15 % of the time to import Lightning is garbage collection that finds next to nothing;
    it goes on once the command is imported.

    Args:
        args: Words of the command line; `sys.argv[1:]` by default.
    """
    gc.disable()
    try:
        command.main(args)
    finally:
        gc.enable()


if __name__ == "__main__":
    main()
