"""A model as files: whether it is whole, how it gets to a machine, its tokenizer and its chat template.

May import `storage` and `spec`. Start with `directory`.
"""
