"""What a run changes about itself after a trouble. Pure functions of the spec and the trouble; a driver acts on them.

May import `spec`, `planning` and `run`. Start with `out_of_memory`.
"""
