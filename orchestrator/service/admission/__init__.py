"""Admission: specs become jobs, or one message with all problems. Also retries, follow-ups and clients that are gone.

May import `context`, `observability.scrub`, `scheduling`, `jobs.spec`, `jobs.planning`, `jobs.search.rules` and
`jobs.storage`. Start with `admit`.
"""
