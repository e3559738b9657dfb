"""Hours of life in minutes: a queue of real jobs on three hosts, and everything that can go wrong; see `make soak`."""
