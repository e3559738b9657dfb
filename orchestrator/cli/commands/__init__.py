"""The commands of `fleetune`, one file for each group.

May import the other files of `cli`, `client`, `pages` and `jobs`. Start with `submit`.
"""
