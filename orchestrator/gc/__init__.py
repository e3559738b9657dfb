"""`fleetune gc`: finds runs, checkpoints and prepared data that may go, decides, and removes them.

May import `client`, `api` and `jobs`. Start with `plan`.
"""
