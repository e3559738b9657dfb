"""Advice before you write a spec: which method of fine-tuning fits the data, the machines and the goal. Pure.

May import `spec`. Start with `method_choice`.
"""
