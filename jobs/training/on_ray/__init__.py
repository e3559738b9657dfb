"""One worker group on Ray Train: its controller, its workers, and how their deaths are told apart.

May import `loop` and what it may import. Start with `fit`.
"""
