"""The work: what a job is (spec), how its data is prepared, how it trains, evaluates and exports."""
