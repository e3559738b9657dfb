"""`fleetune gc`: finds runs, checkpoints and prepared data, decides what to remove, and removes it.

May import `client`, `api` and `jobs`. Start with `plan`.
"""
