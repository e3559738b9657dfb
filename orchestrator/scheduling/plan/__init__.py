"""One pass of the scheduler: which job starts where, and which jobs make room (preempted, shrunk or moved).

May import the ground of `scheduling` and `cluster.capacity`. Pure. Start with `plan`.
"""
