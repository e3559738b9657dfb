"""The process of `fleetune serve`: put together, its background tasks, ended in order.

May import `http`, `controller`, `store`, `local_server` and `cluster`. Start with `process`.
"""
