"""A comparison of methods of training: what is checked before it, what is measured after it, and the table.

May import `search`, `preflight` and what these may import. Start with `figures`, then `page`. `jobs.compare` runs a
comparison.
"""
