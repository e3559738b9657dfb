"""The process that leads a job, from its start to its outcome.

May import everything else in `jobs`. The doors are `attempt`, which a queue starts, and `ray_submitted`.
Every driver is stopped by its `stop_request`.
"""
