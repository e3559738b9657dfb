"""HTTP: one gate before all routes, authentication, and one place where errors become answers.

May import `service`, `queue`, `api` and `jobs.spec.checking`. Start with `app`. It imports `routes`, which
import the other files.
"""
