"""The input of a plan: a snapshot of jobs, machines and tenants, the policy, quotas and the ranking.

May import `queue` and `cluster.capacity`. Pure: no clock, no disk, no network. Start with `snapshot`.
"""
