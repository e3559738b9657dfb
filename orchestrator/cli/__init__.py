"""The command line: what is typed becomes calls of the rooms below, and their answers become text or JSON."""
