"""Files at a path or URL, and the formats of files that Fleetune defines: journals and tensor files.

May import the ground of `cluster` and `jobs/frozen.py`. Start with `files`.
"""
