"""Specs become jobs, or one message with every problem; retries, follow-ups and clients that are gone.

May import `context`, `scheduling`, `jobs.spec`, `jobs.planning` and `jobs.storage`. Start with `admit`.
"""
