# shellcheck shell=bash
# What stage.sh and preflight.sh share inside a job: its shape, the environment of its ranks, how a step starts.
# Sourced after common.sh.

# Ranks of each node.
if [[ ${SLURM_TASKS_PER_NODE:-} == *,* ]]; then
    fail "the allocation has unequal nodes ($SLURM_TASKS_PER_NODE tasks on them): say --ntasks-per-node, not --ntasks"
fi
if [[ -n ${SLURM_NTASKS:-} ]]; then
    tasks=$((SLURM_NTASKS / SLURM_JOB_NUM_NODES))
else
    tasks=${SLURM_GPUS_ON_NODE:-1}
fi

restarts=${SLURM_RESTART_COUNT:-0}
CAMBIUM_HOSTS=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export CAMBIUM_HOSTS MASTER_ADDR=${CAMBIUM_HOSTS%%$'\n'*} MASTER_PORT=$((10000 + (SLURM_JOB_ID * 10 + restarts) % 20000))
export SLURM_EXPORT_ENV=ALL # or sbatch --export=X leaves the tasks without PATH
cores=$((${SLURM_CPUS_ON_NODE:-1} / tasks)) # the node's, shared out, where --cpus-per-task was not said
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-$((cores > 1 ? cores : 1))}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SRUN_CPUS_PER_TASK}
export NCCL_DEBUG=${NCCL_DEBUG:-WARN} TORCH_NCCL_ASYNC_ERROR_HANDLING=1 PYTHONFAULTHANDLER=1 HF_HUB_OFFLINE=1
export TMPDIR=${SLURM_TMPDIR:-/tmp}

# shellcheck disable=SC2154 # step_options is set by common.sh
in_step() { # a command on every rank, in place of this shell, whose caller runs it in one of its own and may signal it.
    # Without --kill-on-bad-exit one dead rank would hang the others for ever.
    exec srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$((SLURM_JOB_NUM_NODES * tasks))" --ntasks-per-node="$tasks" \
        --kill-on-bad-exit=1 --wait=60 "${step_options[@]}" "$@"
}

exclude() { # hosts, one a line, from where this job may run; only once it waits again
    local old
    old=$(scontrol show job --oneliner "$SLURM_JOB_ID" | sed -n 's/.* ExcNodeList=\([^ ]*\).*/\1/p')
    [[ $old != '(null)' ]] || old=''
    scontrol update JobId="$SLURM_JOB_ID" ExcNodeList="$(paste -sd, <<<"$1")${old:+,$old}"
}
