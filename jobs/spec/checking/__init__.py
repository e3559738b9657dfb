"""Finds every mistake in a spec, with its line and what was probably meant.

May import the sections `data`, `queue` and `space`, but no kind of spec: it gets the class. Start with `check`.
"""
