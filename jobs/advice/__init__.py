"""Advice before a job is written: which method of fine-tuning fits the data, the machines and the goal. Pure.

May import `planning`. Start with `method_choice`.
"""
