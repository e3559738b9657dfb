"""`fleetune data check` and `fleetune data show`: facts and findings about samples, and a preview of rows.

May import all of `data` and what its rooms may import. Start with `check`.
"""
