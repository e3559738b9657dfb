"""Forecasts of the queue: why a job waits, and when it is expected to start.

May import `plan` and what it may import. Pure. Start with `why`.
"""
