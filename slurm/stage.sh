#!/usr/bin/env bash
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#SBATCH --exclusive
#SBATCH --signal=B:USR1@180
#
# One stage of a curriculum.
#
#   bash slurm/stage.sh CONFIG STAGE [--train.lr 3e-4 ...]        on this machine
#   sbatch --nodes 2 --ntasks-per-node 8 --gpus-per-node 8 slurm/stage.sh CONFIG STAGE [...]
#
# Start it again, or let SLURM do so, as often as you like: it goes on from its newest checkpoint, and a stage whose
# folder holds DONE is left alone. Exit codes: 0, finished (with DONE) or stopped on request (without); 2, an error of
# yours, never requeued; anything else, a crash, requeued if a checkpoint was written since the start.
#
# CAMBIUM_MAX_RESTARTS (20) bounds the requeues, PYTHON names another Python.
set -euo pipefail

[[ $# -ge 2 ]] || { sed -n '/^# One stage/,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" >&2; exit 2; }

# SLURM runs a copy of this script from its spool folder.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [[ ! -d $root/pretrain && -n ${SLURM_JOB_ID:-} ]]; then
    script=$(scontrol show job --oneliner "$SLURM_JOB_ID" | sed -n 's/.* Command=\([^ ]*\).*/\1/p')
    root=$(cd "$(dirname "$script")/.." && pwd)
fi
# shellcheck source=slurm/common.sh
source "$root/slurm/common.sh"

config=$1 stage=$2
shift 2

if [[ -z ${SLURM_JOB_ID:-} ]]; then
    exec "$PYTHON" -m pretrain.launch "$config" --stage "$stage" "$@"
fi

# ---- inside a SLURM job: one task a rank, under srun
if [[ -z ${SLURM_NTASKS:-} ]]; then
    export SLURM_NTASKS=$((SLURM_JOB_NUM_NODES * ${SLURM_GPUS_ON_NODE:-1}))
fi
facts=$("$PYTHON" -m pretrain.stages "$config" --stage "$stage" --ranks "$SLURM_NTASKS" \
    --ranks-per-node "${SLURM_GPUS_ON_NODE:-${SLURM_NTASKS_PER_NODE:-8}}" "$@")
IFS=$'\t' read -r _ _ _ state folder <<<"$facts"
if [[ $state == "done" ]]; then
    echo "$folder is finished already"
    exit 0
fi

restarts=${SLURM_RESTART_COUNT:-0}
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((10000 + (SLURM_JOB_ID * 10 + restarts) % 20000))
export SLURM_EXPORT_ENV=ALL # or sbatch --export=X leaves the tasks without PATH
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SRUN_CPUS_PER_TASK}
export NCCL_DEBUG=${NCCL_DEBUG:-WARN} TORCH_NCCL_ASYNC_ERROR_HANDLING=1 PYTHONFAULTHANDLER=1 HF_HUB_OFFLINE=1
export TMPDIR=${SLURM_TMPDIR:-/tmp}
export CAMBIUM_EXIT=$TMPDIR/cambium-$SLURM_JOB_ID-$restarts.exit

newest() { # checkpoint; nothing before the first one
    [[ ! -d $folder/checkpoints ]] || find "$folder/checkpoints" -maxdepth 1 -name 'step-*' | sort | tail -n 1
}
before=$(newest)

# Without --kill-on-bad-exit one dead rank would hang the others for ever.
srun --ntasks="$SLURM_NTASKS" --kill-on-bad-exit=1 --wait=60 \
    bash "$root/slurm/rank.sh" "$PYTHON" -m pretrain "$config" --stage "$stage" "$@" &
step=$!
# SLURM's warning before a preemption or the time limit: the ranks save and leave. TERM would kill them at once.
trap 'kill -USR1 $step 2>/dev/null' USR1 TERM
while kill -0 "$step" 2>/dev/null; do wait "$step" || true; done
code=0
wait "$step" || code=$?
if [[ -s $CAMBIUM_EXIT && $(<"$CAMBIUM_EXIT") == 2 ]]; then code=2; fi

requeue() {
    if ((restarts >= ${CAMBIUM_MAX_RESTARTS:-20})); then
        echo "error: $stage was restarted $restarts times without reaching its end; submit it again to go on" >&2
        exit 1
    fi
    trap '' TERM USR1 # requeueing ends this script with TERM
    echo "$stage: $1; requeued (restart $((restarts + 1)))"
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}

if [[ $code == 2 ]]; then
    exit 2
elif [[ -f $folder/DONE ]]; then
    exit 0
elif [[ $code == 0 ]]; then
    requeue "stopped on request"
elif ((code > 128)); then
    requeue "ended by signal $((code - 128))"
elif [[ $(newest) != "$before" ]]; then
    requeue "ended with code $code after it had saved a checkpoint"
fi
exit "$code"
