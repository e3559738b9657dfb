"""The training loop, its state, saving, restoring and evaluation, and the worker around it.

May import `checkpoint`, `data`, `jobs.remedies` and what these may import. Start with `loop`. `warm` runs it once for
each trial.
"""
