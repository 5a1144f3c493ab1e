"""`python -m virnucpro_pl` is the command `virnucpro-pl`."""

from virnucpro_pl.cli import main

if __name__ == "__main__":
    main()
