"""Output for people: tables, pages and plots made from values. Nothing here asks, decides or writes.

May import `api` and values of `gc`, `simulate` and `jobs`. Start with `queue`.
"""
