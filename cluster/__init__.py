"""The machines: what there is, where a gang fits, how programs are started, watched and stopped.

May import nothing else of this repository. Start with `backend`, the contract of all backends.
"""
