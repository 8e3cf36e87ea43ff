"""A training step and what surrounds it: rows of the token table, optimizer, log figures, checkpoints."""
