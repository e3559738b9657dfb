"""A gang of processes of a program of the user's own."""
