#!/usr/bin/env bash
# One rank of a job step: SLURM's variables become those of torch.distributed. Started by stage.sh through srun.
# Rank 0 leaves its exit code in CAMBIUM_EXIT, on the batch host: srun reports the highest code, and that is the signal
# of a rank that it killed rather than the 2 of a user's error.
set -uo pipefail
export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS

"$@" &
pid=$!
# srun signals every process of the step, the rank included; this shell stays to report how it ended.
trap : USR1 TERM
while kill -0 "$pid" 2>/dev/null; do wait "$pid"; done # a signal interrupts wait
wait "$pid"
code=$?
if [[ $RANK == 0 ]]; then echo "$code" >"$CAMBIUM_EXIT"; fi
exit "$code"
