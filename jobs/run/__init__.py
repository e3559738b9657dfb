"""One run's directory: its paths, record, events, checkpoints, requests and summary, and whether it may go on.

May import `storage`, `spec` and `planning`. Start with `paths`, then `record`.
"""
