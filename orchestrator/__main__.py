"""`python -m orchestrator` is `fleetune`."""

from orchestrator.cli import main

main()
