"""One worker group on Ray Train: its controller, its workers, and the classification of their failures.

May import `loop` and what it may import. Start with `fit`.
"""
