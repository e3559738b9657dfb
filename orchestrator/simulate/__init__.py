"""A queue's history run again: on another cluster, under another policy, by the functions that run the live queue.

May import `scheduling`, `pages` and `jobs.storage`. Start with `engine`.
"""
