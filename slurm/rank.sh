#!/usr/bin/env bash
# One rank of a job step: SLURM's variables become those of torch.distributed. Started by stage.sh through srun.
# The file CAMBIUM_EXIT gets the exit code of the first rank that ends badly, or the 2 of a user's error: srun reports
# the highest code, and that is the signal of a rank that it killed because of the first.
set -uo pipefail
export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS

"$@" &
pid=$!
# srun signals every process of the step, the rank included; this shell stays to report how it ended.
trap : USR1 TERM
while kill -0 "$pid" 2>/dev/null; do wait "$pid"; done # a signal interrupts wait
wait "$pid"
code=$?
if [[ $code == 2 ]]; then
    echo 2 >"$CAMBIUM_EXIT"
elif [[ $code != 0 ]]; then
    (set -o noclobber && echo "$code" >"$CAMBIUM_EXIT") 2>/dev/null
fi
exit "$code"
