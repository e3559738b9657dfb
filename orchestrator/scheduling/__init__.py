"""Who runs next, and where. Pure functions of a snapshot: no clock, no disk, no network."""
