"""From source files to rows of tokens, and the order in which a run trains on them.

May import `storage`. The files here are the ground of its rooms. Start with `prepared`, the layout of prepared rows.
"""
