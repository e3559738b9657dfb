"""Ray Tune and Optuna: proposals, schedulers, and the actors that stand for trials.

May import `ledger`, `rules` and `training.mailbox`. Start with `tuner`.
"""
