"""The control loop of the queue, one pass after another: look, settle, plan, write, act.

May import `queue`, `scheduling`, `cluster.backend`, `cluster.capacity` and `cluster.ray.bundles`. Start with
`controller`, then `planner`.
"""
