"""What a run changes about itself after a trouble: pure functions that decide. Drivers and the training loop act.

May import `spec`, `planning` and `run`. Start with `outliers`.
"""
