"""The command `virnucpro-pl`, also as `python -m virnucpro_pl`."""

import gc

# Some 15 % of the time to import Lightning is garbage collection that finds next to nothing. What
# is imported stays: frozen, it is in no later collection either.
gc.disable()
from virnucpro_pl.cli.main import main  # noqa: E402

gc.freeze()
gc.enable()

if __name__ == "__main__":
    main()
