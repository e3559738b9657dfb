"""Forecasts of the queue: why a job waits, and when it is expected to start.

May import `plan`, `queue` and what these may import. Pure. Start with `why`.
"""
