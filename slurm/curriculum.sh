#!/usr/bin/env bash
# All stages of a curriculum, one after the other, or the named ones. Stages that are finished are skipped.
#
#   bash slurm/curriculum.sh [--here | --test-only] CONFIG [STAGE ...]
#
# Where there is sbatch they are submitted as a chain of dependent jobs, with a copy of the code and the config, so that
# a requeue runs what was submitted; with --here, inside a job, and where there is no sbatch, they run here. Everything
# is checked before the first is submitted; of a file with `yours` the model is imported and the corpus prepared before
# that, and what runs here ends with an export. --test-only checks, asks SLURM when each would start, and submits nothing.
# slurm/site.sh says where jobs go. Call it again at any time: what is queued or running is not submitted twice.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
here=${SLURM_JOB_ID:-} test_only=''
case ${1:-} in
--here) here=yes && shift ;;
--test-only) test_only=yes && shift ;;
esac
[[ $# -ge 1 && $1 != -* ]] || { sed -n '/^# All stages/,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" >&2; exit 2; }
# shellcheck source=slurm/common.sh
source "$root/slurm/common.sh"
config=$1
shift
chosen=()
for name; do chosen+=(--stage "$name"); done

run_here() {
    local name state ranks folder
    while IFS=$'\t' read -r name state ranks _ folder <&3; do
        if [[ $state == "done" ]]; then
            echo "== $name is finished already"
            continue
        fi
        echo "== $name: $ranks ranks, $folder"
        bash "$root/slurm/stage.sh" "$config" "$name"
        [[ -f $folder/DONE ]] || exit 1 # stopped on request
    done 3<<<"$stages"
    while IFS=$'\t' read -r name _ _ _ folder <&3; do # what processes beside training have not come to yet
        [[ ! -d $folder/evaluations ]] || bash "$root/slurm/evaluate.sh" "$folder" || true # said, and no reason to fail
    done 3<<<"$stages"
    if grep -qs '^yours:' "$config" && [[ -z ${chosen[*]} ]]; then once "$root/tools/yours.py" "$config" --end; fi
}

snapshot() { # what jobs will run: the same content is the same folder
    local run=$1 new name
    mkdir -p "$run/.submitted"
    new=$(mktemp -d "$run/.submitted/new.XXXXXX")
    (cd "$root" && find growth pretrain slurm tools -type f -not -name '*.pyc' -print0 | xargs -0 cp --parents -t "$new")
    cp "$config" "$new/$(basename "$config")"
    name=$(cd "$new" && find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum | cut -c 1-12)
    [[ ! -d $root/.venv ]] || ln -s "$(realpath "$root/.venv")" "$new/.venv"
    mv -T "$new" "$run/.submitted/$name" 2>/dev/null || rm -rf "$new"
    realpath "$run/.submitted/$name"
}

# Reads the queue into `jobs`: the job of each stage, if there is one. Jobs carry the folder of their stage as comment.
declare -A jobs=()
read_queue() {
    local queue job comment name folder
    local -A job_of=()
    queue=$(squeue --me --noheader --format='%A|%k')
    while IFS='|' read -r job comment; do
        [[ -z $comment || -n ${job_of[$comment]:-} ]] || job_of[$comment]=$job
    done <<<"$queue"
    while IFS=$'\t' read -r name _ _ _ folder; do jobs[$name]=${job_of[$(realpath -m "$folder")]:-}; done <<<"$stages"
}

submit() {
    local name facts state ranks nodes folder tasks options copy='' previous=''
    local -A facts_of=()
    while IFS=$'\t' read -r name facts; do facts_of[$name]=$facts; done <<<"$checked"
    while IFS=$'\t' read -r name _ <&3; do
        if [[ -n ${jobs[$name]} ]]; then
            echo "$name is job ${jobs[$name]} already"
            previous=${jobs[$name]}
            continue
        fi
        [[ -n ${facts_of[$name]:-} ]] || continue
        IFS=$'\t' read -r state ranks nodes folder <<<"${facts_of[$name]}"
        if [[ $state == "done" ]]; then
            echo "$name is finished already"
            continue
        fi
        tasks=$((ranks / nodes))
        options=(--nodes="$nodes" --ntasks-per-node="$tasks" --job-name="cambium-$(basename "$(dirname "$folder")")-$name")
        [[ $CAMBIUM_GPUS == 0 ]] || options+=(--gpus-per-node="$tasks")
        [[ -z $CAMBIUM_CPUS_PER_RANK ]] || options+=(--cpus-per-task="$CAMBIUM_CPUS_PER_RANK")
        if [[ -n $test_only ]]; then
            echo "$name: $nodes nodes x $tasks ranks"
            sbatch --test-only "${options[@]}" "$root/slurm/stage.sh" "$config" "$name"
            continue
        fi
        [[ -n $copy ]] || copy=$(snapshot "$(dirname "$folder")")
        mkdir -p "$folder"
        options+=(--parsable --comment="$(realpath "$folder")" --output="${folder//%/%%}/job-%j.log")
        [[ -z $previous ]] || options+=(--dependency="afterok:$previous" --kill-on-invalid-dep=yes)
        previous=$(sbatch "${options[@]}" "$copy/slurm/stage.sh" "$copy/$(basename "$config")" "$name")
        previous=${previous%%;*} # a cluster's name may follow
        echo "$name is job $previous: $nodes nodes x $tasks ranks, $folder/job-$previous.log"
    done 3<<<"$stages"
}

if grep -qs '^yours:' "$config"; then # its model and its corpus, where they are not there yet
    once "$root/tools/yours.py" "$config" --begin
fi
if [[ -n $here ]] || ! command -v sbatch >/dev/null; then
    [[ -z $test_only ]] || fail "--test-only asks sbatch, and there is none on this machine"
    stages=$(once -m pretrain.cli.submission "$config" "${chosen[@]}")
    run_here
    exit
fi
stages=$(once -m pretrain.cli.submission "$config")
read_queue
ahead=()
for name in "${!jobs[@]}"; do [[ -z ${jobs[$name]} ]] || ahead+=(--ahead "$name"); done
checked=$(once -m pretrain.cli.submission "$config" "${chosen[@]}" "${ahead[@]}" --ranks-per-node "$CAMBIUM_RANKS_PER_NODE")
if [[ -z $test_only ]]; then
    run=$(dirname "$(head -n 1 <<<"$stages" | cut -f 5)")
    mkdir -p "$run"
    exec 9>"$run/.submit.lock"
    flock 9 # of two at once, the second finds the jobs of the first
    read_queue
fi
submit
if grep -qs '^yours:' "$config"; then echo "then: python tools/yours.py $config --end exports the last stage"; fi
[[ -z $test_only ]] || echo "next: python tools/dryrun.py $config runs what each stage would do on a GPU, here, without one"
