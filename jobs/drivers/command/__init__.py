"""Leads a gang of processes that run a user's program.

May import `link`, `spec`, `planning` and `cluster`. Start with `attempt`, then `gang`.
"""
