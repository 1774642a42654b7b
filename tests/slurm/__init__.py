"""Curricula on a real SLURM cluster of virtual hosts, with the real trainer, through everything a cluster does to them.

`make test-cluster` installs what it needs and runs the ones that CI runs; `make test-long` runs all. After each, the
final weights and moments are bit for bit those of a run that nothing disturbed.
"""
