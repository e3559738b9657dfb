"""The process of `fleetune serve`: its assembly, its background tasks, and its orderly end.

May import `http`, `controller`, `store`, `local_server` and `cluster`. Start with `process`.
"""
