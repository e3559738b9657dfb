"""Thin routes, one file for each noun.

May import the other files of `http`, `service` and `jobs.drivers.link`. Start with `jobs`.
"""
