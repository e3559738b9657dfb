"""Tokenises once, packs, shuffles and writes shards, in this process or on Ray Data.

May import `prepared`, `sources`, `run` and what these may import. Start with `prepare`.
"""
