"""The database of a store: its address, connection, tables, rows and migrations.

May import `queue`. Start with `schema`, then `database`.
"""
