"""From source files to records, samples and tokens, a chunk at a time.

May import `prepared`, `storage`, `spec` and `model_files`. Start with `records`, then `chunks`.
"""
