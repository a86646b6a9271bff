"""How a run gets onto machines: ranks on this machine, torchrun, SLURM."""
