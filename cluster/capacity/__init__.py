"""Values and pure functions: which machines there are, who holds what, and where a gang fits.

May import the ground of `cluster`: errors and text. Start with `inventory`, then `free_slots`.
"""
