"""One run's directory: its paths, record, events, checkpoints, requests and summary, and the check before a resume.

May import `storage`, `spec` and `planning`. Start with `paths`, then `record`.
"""
