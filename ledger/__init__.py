"""The ledger: what should be true, and what happened, in one SQLite file. Knows nobody else."""
