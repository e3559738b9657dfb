"""The commands of `fleetune`, one file for each group.

May import the other files of `cli`, `client`, `pages`, `jobs`, and, for commands that need no server,
`orchestrator.gc`, `orchestrator.simulate`, `orchestrator.server`, `orchestrator.store` and
`orchestrator.service.tokens`. Start with `submit`.
"""
