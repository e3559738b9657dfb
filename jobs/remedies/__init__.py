"""Decides, in pure functions, what a run changes after a failure. Drivers and the training loop act on the decisions.

May import `spec`, `planning` and `run`. Start with `out_of_memory`.
"""
