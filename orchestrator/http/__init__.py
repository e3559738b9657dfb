"""HTTP: one gate before all routes, authentication, and one place where errors become answers.

May import `service`, `api` and `jobs.spec.checking`. The door is `app`; the other files are the ground of `routes`.
"""
