"""The process that leads a job, from its start to its outcome.

May import everything else in `jobs`, and `cluster`. Start with `attempt`, which the queue starts for each attempt of a
job, or with `ray_submitted`, for jobs that come through `ray job submit`. `stop_request` is how every driver is asked
to stop.
"""
