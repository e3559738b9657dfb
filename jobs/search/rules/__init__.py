"""The decisions of a search, as pure functions: which fields vary, the prior, the budget, rungs and `auto`.

May import `spec`, `planning`, `model_files`, `run` and `search.trial`. Start with `budget`.
"""
