"""Simulations of a queue's history: on another cluster, under another policy, with the functions of the live queue.

May import `scheduling`, `pages` and `jobs.storage`. Start with `engine`.
"""
