"""Reports about a search for people: status, leaderboard, summary and the HTML page.

May import `ledger`, `rules`, `tuning` and what these may import. Start with `status`.
"""
