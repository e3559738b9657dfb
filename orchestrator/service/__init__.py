"""What the server does, independent of HTTP: drivers, launches, nodes, tenants, tokens and usage.

May import its rooms, `api`, `queue`, `controller` and `jobs`. Start with `drivers`.
"""
