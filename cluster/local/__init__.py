"""Programs, processes, memory and GPUs of this machine.

May import `capacity`, `backend` and the ground of `cluster`. Start with `backend`, which starts programs through
`supervisor`.
"""
