"""Values and pure rules of the queue: states, records, transitions, retries, tenants, and the contract of a store.

May import `cluster.backend` and `cluster.capacity`. Start with `states`, then `records`.
"""
