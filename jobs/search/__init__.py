"""The search for the best learning rate and warmup: trials on gangs that stay."""
