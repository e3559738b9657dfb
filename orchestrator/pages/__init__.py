"""Output for people: tables, pages and plots made from values. Makes no requests, and writes no files.

May import `api` and `queue`, values of `orchestrator.gc`, and `jobs`. Start with `queue`.
"""
