#!/usr/bin/env bash
# How far each stage of a curriculum is: state, step, tokens, loss, speed, time left, restarts and job.
#
#   bash slurm/status.sh CONFIG [--json]
#
# From the run's folder and, where there is SLURM, the queue.
set -euo pipefail

[[ $# -ge 1 && $1 != -* ]] || { sed -n '/^# How far/,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" >&2; exit 2; }
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=slurm/common.sh
source "$root/slurm/common.sh"
queue=''
if command -v squeue >/dev/null; then
    queue=$(squeue --me --noheader --format='%k|%A|%T|%r') || echo "warning: squeue does not answer; without the queue" >&2
fi
once -m pretrain.cli.status "$@" --queue <<<"$queue"
