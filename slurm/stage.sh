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
# yours, never requeued; 3 (in a job), stopped by a file STOP in the stage's folder, not requeued either; anything else,
# a crash, requeued after a signal, or if a checkpoint was written since the start.
set -euo pipefail

[[ $# -ge 2 ]] || { sed -n '/^# One stage/,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" >&2; exit 2; }

# SLURM runs a copy of this script from its spool folder.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [[ ! -d $root/pretrain && -n ${SLURM_JOB_ID:-} ]]; then
    script=$(scontrol show job --oneliner "$SLURM_JOB_ID" | sed -n 's|.* Command=\(.*/slurm/[a-z]*\.sh\).*|\1|p')
    root=$(cd "$(dirname "$script")/.." && pwd)
fi
# shellcheck source=slurm/common.sh
source "$root/slurm/common.sh"

config=$1 stage=$2
shift 2

if [[ -z ${SLURM_JOB_ID:-} ]]; then
    exec "$PYTHON" -m pretrain.cli.launch "$config" --stage "$stage" "$@"
fi

# ---- inside a SLURM job: one task a rank, under srun
# shellcheck source=slurm/job.sh
source "$root/slurm/job.sh"

# SLURM's warning before a preemption or the time limit: the ranks save and leave. TERM would kill them at once.
asked='' step=''
# shellcheck disable=SC2329 # the trap calls it
leave() {
    asked=yes
    echo "$stage: SLURM asks for the nodes; saving"
    [[ -z $step ]] || kill -USR1 "$step" 2>/dev/null || true # srun may have ended already
}
trap leave USR1 TERM

facts=$(once -m pretrain.cli.submission "$config" --stage "$stage" --nodes "$SLURM_JOB_NUM_NODES" \
    --ranks-per-node "$tasks" --gpus-per-node "${SLURM_GPUS_ON_NODE:-$CAMBIUM_RANKS_PER_NODE}" "$@")
IFS=$'\t' read -r _ state _ _ folder <<<"$facts"
if [[ $state == "done" ]]; then
    echo "$folder is finished already"
    exit 0
fi
mkdir -p "$folder"

note() { # keeps what happened to the stage's jobs, for status.sh and for people
    printf '%s\t%s\t%s\t%s\t%s\n' "$(date -u +%FT%TZ)" "$SLURM_JOB_ID" "$restarts" "$SLURM_JOB_NODELIST" "$1" >>"$folder/jobs.tsv"
    echo "$stage: $1"
}

requeue() { # why, and hosts to stay away from
    # A job that SLURM is ending was cancelled, which a requeue would undo, or SLURM requeues it; its time limit does not.
    case $(scontrol show job --oneliner "$SLURM_JOB_ID") in
    *' JobState=RUNNING '* | *' Reason=TimeLimit '*) ;;
    *' JobState='*) note "$1; SLURM ends the job" && exit 1 ;;
    *) note "$1; not requeued, for scontrol says nothing of the job: submit it again" && exit 1 ;;
    esac
    if ((restarts >= CAMBIUM_MAX_RESTARTS)); then
        note "$1; not requeued, after $restarts restarts"
        echo "error: $stage was restarted $restarts times without reaching its end; submit it again to go on" >&2
        exit 1
    fi
    note "$1; requeued"
    trap '' TERM USR1 # requeueing ends this script with TERM
    scontrol requeue "$SLURM_JOB_ID" || exit 1
    [[ -z ${2:-} ]] || exclude "$2"
    exit 0
}

note "start"
newest() { # checkpoint; nothing before the first one
    [[ ! -d $folder/checkpoints ]] || find "$folder/checkpoints" -maxdepth 1 -name 'step-*' | sort | tail -n 1
}
before=$(newest)

code=0
bad=$(CAMBIUM_FOLDER=$folder bash "$root/slurm/preflight.sh") || code=$?
[[ -z $bad ]] || requeue "preflight found bad hosts, $(paste -sd, <<<"$bad")" "$bad"
[[ -z $asked ]] || requeue "stopped on request"
if [[ $code != 0 ]]; then
    note "failed in preflight"
    exit "$code"
fi

export CAMBIUM_EXIT=$folder/.exit # on a filesystem that all ranks see
rm -f "$CAMBIUM_EXIT" "$folder/STOPPED" "$folder/UNFIT" # of the start before
in_step bash "$root/slurm/rank.sh" "${in_job[@]}" -m pretrain "$config" --stage "$stage" "$@" &
step=$!
[[ -z $asked ]] || kill -USR1 "$step" 2>/dev/null || true # asked before there was a step
while kill -0 "$step" 2>/dev/null; do wait "$step" || true; done
wait "$step" || code=$?
[[ ! -s $CAMBIUM_EXIT ]] || code=$(<"$CAMBIUM_EXIT")

if [[ $code == 2 ]]; then
    note "failed: an error of the user"
elif [[ -f $folder/DONE ]]; then
    note "finished"
    code=0
elif [[ -f $folder/STOPPED ]]; then
    note "stopped by the switch STOP; submit it again to go on"
    code=3
elif [[ -s $folder/UNFIT ]]; then
    requeue "wrong gradients from $(paste -sd, "$folder/UNFIT")" "$(<"$folder/UNFIT")"
elif [[ $code == 0 ]]; then
    requeue "stopped on request"
elif ((code > 128)); then
    requeue "ended by signal $((code - 128))"
elif [[ $(newest) != "$before" ]]; then
    requeue "ended with code $code after it had saved a checkpoint"
else
    note "failed with code $code, and nothing saved since the start"
fi
exit "$code"
