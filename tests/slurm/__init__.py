"""A real SLURM cluster on this machine, and training on it."""
