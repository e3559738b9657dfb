"""`python -m orchestrator` is `fleetune`."""

from orchestrator.entry import main

main()
