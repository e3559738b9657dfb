"""Tokenise once, pack, shuffle and write shards, in this process or on Ray Data.

May import `prepared`, `sources`, `run` and what these may import. Start with `prepare`.
"""
