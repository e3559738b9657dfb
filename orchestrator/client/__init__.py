"""The SDK, and how a server is read over HTTP. A script needs `from orchestrator import Client` alone.

May import `api`, `problem`, `queue`, `jobs.spec` and `jobs.run`; nothing of the server. Start with `client`.
"""
