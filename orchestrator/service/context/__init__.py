"""The context of the service: the caller, heartbeats, identity and a cache of the machines.

May import `api`, `queue`, `scheduling`, `cluster.backend` and `cluster.capacity`. Start with `context`.
"""
