"""Checks and work that come before a worker starts.

May import `data`, `training.model` and what these may import. Start with `validate`, then `ready`.
"""
