#!/usr/bin/env bash
# The checkpoints of a stage that its `eval` asks for and that have no results yet, as a job beside its training, which
# submits it; see pretrain/judge/beside.py. It can be called by hand as well.
#
#   bash slurm/evaluate.sh RUN/STAGE
set -euo pipefail

[[ $# -eq 1 && $1 != -* ]] || { sed -n '/^# The checkpoints/,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" >&2; exit 2; }

# SLURM runs a copy of this script from its spool folder.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [[ ! -d $root/pretrain && -n ${SLURM_JOB_ID:-} ]]; then
    script=$(scontrol show job --oneliner "$SLURM_JOB_ID" | sed -n 's|.* Command=\(.*/slurm/[a-z]*\.sh\).*|\1|p')
    root=$(cd "$(dirname "$script")/.." && pwd)
fi
# shellcheck source=slurm/common.sh
source "$root/slurm/common.sh"

once "$root/tools/evaluate.py" "$1" --due
