"""Checks and work that come before a worker starts.

May import `data`, `model_files`, `planning`, `training.model`, the loss of `training.loop`, and what these may import.
Start with `validate`, then `ready`; `model_trace` traces a step of a model for the plan of its memory.
"""
