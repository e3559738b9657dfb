"""From source files to rows of tokens, and the order in which a run trains on them.

May import `storage` and `run.paths`. The rooms below import the files here. Start with `prepared`, the layout of
prepared rows.
"""
