"""Leads a run: on Ray or under torchrun, from an open run to its outcome.

May import `preflight`, `training` and what these may import. Start with `begin`, then `ray_driver`.
"""
