"""Files at a path or URL, and the formats that are kept there: journals and tensor files.

May import the ground of `cluster` and `jobs/frozen.py`. Start with `files`.
"""
