#!/usr/bin/env bash
# Prints the programs of a cluster that this machine does not have, one a line; nothing where it has all of them.
export PATH=$PATH:/usr/sbin:/sbin
# Each by itself: `command -v` of several succeeds as soon as one of them is there.
for name in slurmctld slurmd sbatch srun squeue sinfo scontrol munged ip unshare nsenter; do
    command -v "$name" >/dev/null || echo "$name"
done
