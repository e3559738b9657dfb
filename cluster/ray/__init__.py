"""Ray: a connection to it, its nodes, its jobs and its autoscaler. The only room of this package that imports `ray`.

May import `capacity`, `backend`, `job_environment`, `local.supervisor` and the ground of `cluster`. Start with
`connection` for what a driver does, and with `backend` for what the queue's server does.
"""
