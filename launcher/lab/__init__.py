"""A real SLURM cluster on one machine: for tests, and for trying a script before it costs queue time."""

from launcher.lab.lab import Lab, slurm_lab

__all__ = ["Lab", "slurm_lab"]
