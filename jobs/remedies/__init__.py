"""Troubles of a run: how each is recognised, and what the run changes about itself. Pure functions; the caller acts.

May import `run` and what it may import. Start with `early_stopping`.
"""
