"""The spec of a job: one file for each kind of spec and for each section, and the code that reads a spec.

May import `storage`, `checking` and the ground. Start with `finetune`, then `load`.
"""
