"""Settings of all tests."""

from hypothesis import settings

# Machines differ, and a slow one is no failure; numbers of examples are bounded instead.
settings.register_profile("fleetune", deadline=None, max_examples=60)
settings.load_profile("fleetune")
