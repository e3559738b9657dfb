"""The command line: what is typed becomes calls, and their results become text or JSON.

May import `client`, `pages` and `jobs`. The doors are `entry` and `app`.
"""
