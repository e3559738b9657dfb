"""Simulates a trace of jobs on another cluster or under another policy, with the functions of the live queue.

May import `scheduling`, `pages` and `jobs.storage`. Start with `engine`.
"""
