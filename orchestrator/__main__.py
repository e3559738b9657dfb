"""`python -m orchestrator` is `fleetune`."""

from orchestrator.cli.entry import main

main()
