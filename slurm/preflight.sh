#!/usr/bin/env bash
#SBATCH --exclusive
#SBATCH --output=preflight-%j.log
#
# Are the nodes of this job fit to train on? On each: the GPUs that were asked for are there and without ECC errors, and
# there is room in /dev/shm, TMPDIR and the run's folder; then a short all-reduce over all ranks.
#
#   sbatch --nodes 16 --ntasks-per-node 8 --gpus-per-node 8 slurm/preflight.sh
#
# Prints the hosts that are not, one a line, and says why on stderr. stage.sh calls it before every start.
set -euo pipefail

if [[ ${1:-} == --host ]]; then # on one host: its name when it is bad
    bad() {
        echo "$SLURMD_NODENAME: $1" >&2
        echo "bad $SLURMD_NODENAME"
        exit 0
    }
    room() {
        local free
        free=$(df --output=avail --block-size=1M "$1" 2>/dev/null | tail -n 1) || bad "there is no folder $1"
        ((free / 1024 >= $2)) || bad "$((free / 1024)) GB free in $1, and $2 are wanted"
    }
    if [[ $CAMBIUM_GPUS != 0 ]]; then
        found=$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null | wc -l || true)
        ((found >= $2)) || bad "$found GPUs, and $2 are wanted"
        errors=$(nvidia-smi --query-gpu=ecc.errors.uncorrected.volatile.total --format=csv,noheader,nounits | grep -c '^[1-9]' || true)
        ((errors == 0)) || bad "$errors GPUs with uncorrected ECC errors"
    fi
    room /dev/shm "$CAMBIUM_MIN_SHM_GB"
    room "$TMPDIR" "$CAMBIUM_MIN_DISK_GB"
    room "$CAMBIUM_FOLDER" "$CAMBIUM_MIN_DISK_GB"
    exit 0
fi

[[ -n ${SLURM_JOB_ID:-} ]] || { sed -n '/^# Are the/,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" >&2; exit 2; }
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [[ ! -d $root/pretrain ]]; then # SLURM runs a copy of this script from its spool folder
    script=$(scontrol show job --oneliner "$SLURM_JOB_ID" | sed -n 's|.* Command=\(.*/slurm/[a-z]*\.sh\).*|\1|p')
    root=$(cd "$(dirname "$script")/.." && pwd)
fi
# shellcheck source=slurm/common.sh
source "$root/slurm/common.sh"
# shellcheck source=slurm/job.sh
source "$root/slurm/job.sh"
export CAMBIUM_FOLDER=${CAMBIUM_FOLDER:-$PWD}

hosts() { sed -n 's/^bad \([^ ]*\).*/\1/p' | sort -u; }

bad=$(srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
    bash "$root/slurm/preflight.sh" --host "$tasks" | hosts)
if [[ -z $bad ]]; then
    said=$(CAMBIUM_EXIT=/dev/null in_step bash "$root/slurm/rank.sh" "${in_job[@]}" -m pretrain.cli.preflight) || code=$?
    bad=$(hosts <<<"$said")
    [[ -n $bad || -z ${code:-} ]] || exit 1 # and it cannot be said which host it was
fi
[[ -z $bad ]] || echo "$bad"
