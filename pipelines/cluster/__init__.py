"""Slurm: job scripts, submission, node health."""
