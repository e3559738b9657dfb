"""The search for the best learning rate and warmup, on gangs that stay from trial to trial.

May import `rules`, `run`, `training.mailbox` and what these may import. Start with `ledger`, the record of all trials.
"""
