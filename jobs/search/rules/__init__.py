"""The decisions of a search, as pure functions: which fields vary, the prior, the budget, rungs and `auto`.

May import `spec` and `planning`. Start with `budget`, then `auto`.
"""
