"""Plants failures in real runs, and checks the cause that is named, what is done about it, and the number of starts.

    python -m bench.failures [--quick] [--only NAME ...] [--kind KIND ...] [--out FILE]

Start with `cases`, the table. `planting` changes the processes of a run, `given` makes models and data, and `judging`
compares what a user sees with the table. One JSON line for each case goes to stdout, with a summary at the end.
"""
