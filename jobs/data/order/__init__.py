"""Which rows each step trains on, and the streams that follow this order.

May import `prepared`, `spec` and `planning`. Start with `row_order`, then `stream`.
"""
