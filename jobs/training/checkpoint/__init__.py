"""Checkpoints: written in the background, read on any number of workers, and turned into a model directory.

May import `model` and what it may import. Start with `writer`, then `reader`.
"""
