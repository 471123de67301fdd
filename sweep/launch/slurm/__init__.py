"""Sweeps as job arrays of a SLURM cluster, submitted through submitit."""
