"""The queue over HTTP: `fleetune serve`. Needs the group `serve`, except for `record` and `scrub`."""
