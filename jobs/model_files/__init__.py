"""A model as files: checks, download to a machine, tokenizer and chat template.

May import `storage` and `spec`. Start with `directory`.
"""
