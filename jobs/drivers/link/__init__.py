"""How a driver and the queue's server talk: messages, calls and progress.

May import `run` and the ground. Start with `messages`.
"""
