"""The command line: arguments become calls, and their results become text or JSON.

May import `client`, `pages` and `jobs`. Start with `entry`, then `app`.
"""
