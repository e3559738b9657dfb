"""The work: what a job is, how its data is prepared, how it trains, evaluates and exports.

May import `cluster`. Start with `finetune`, the entry point of a run, or with `spec`.
"""
