"""What a job is: one file for each kind of spec and for each section, and how a spec is read.

May import `storage`, `checking` and the ground. Start with `finetune`, then `load`.
"""
