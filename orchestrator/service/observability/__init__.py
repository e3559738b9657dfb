"""Observability: why a job waits, its logs, its metrics, and what it does.

May import `context`, `api`, `controller`, `scheduling`, `jobs.run` and `jobs.storage`. Start with `explain`.
"""
