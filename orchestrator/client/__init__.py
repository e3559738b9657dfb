"""The SDK, and how a server is read over HTTP. A script needs `from orchestrator import Client` alone.

May import `api`, `problem`, `queue`, `jobs.spec`, `jobs.run`, and for plans `jobs.planning`, `jobs.preflight` and the
rules of `jobs.search`; nothing of the server. Start with `client`.
"""
