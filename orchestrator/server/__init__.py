"""The process of `fleetune serve`: its assembly, its background tasks, and its orderly end.

May import `http`, `service`, `controller`, `store`, `local_server`, `client.discovery` and `cluster`. Start with
`process`.
"""
