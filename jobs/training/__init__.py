"""What every worker has: its context, its input, its reporter, and the classes of its failures.

May import `remedies`, `data.order` and what these may import. Start with `worker_input`, then `loop`.
"""
