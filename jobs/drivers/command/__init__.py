"""Leads a gang of processes that run a program of the user's own.

May import `link`, `spec`, `planning` and `cluster`. Start with `attempt`, then `gang`.
"""
