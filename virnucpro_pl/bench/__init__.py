"""`virnucpro-pl bench`: this program, its peers and the hardware's limit, side by side in one run.

All weights are random, of the real sizes. The limit is the time of the encoder's matrix products
alone; since cards throttle under load, it is measured before and after everything else.
"""
