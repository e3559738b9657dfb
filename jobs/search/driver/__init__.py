"""The process that leads a search: its warm gangs, the requests of trials, and the final run.

May import all of `search`, `preflight`, `training` and `drivers.finetune`. Start with `drive`, then `searching`.
"""
