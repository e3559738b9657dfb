"""Finds every mistake in a spec, with its line and what was probably meant.

May import the kinds of specs. Start with `mistakes`.
"""
