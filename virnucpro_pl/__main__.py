"""The command `virnucpro-pl`, also as `python -m virnucpro_pl`."""

import gc

# Some 15 % of the time to import Lightning is garbage collection that finds next to nothing; `main`
# turns it on again once the command is imported.
gc.disable()
from virnucpro_pl.cli.main import main  # noqa: E402

if __name__ == "__main__":
    main()
