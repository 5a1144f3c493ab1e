"""Hours of kills, faults and mutations, drawn by seed: `python -m tests.soak`.

No test of pytest: these run for as long as they are asked to. A part is a module with a function
`trial(seed, folder)`, which does one trial in an empty folder and tells `ok` and `what` it did.
"""
