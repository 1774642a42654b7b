# shellcheck shell=bash
# What the scripts share: the site's settings, where the code and its Python are, how to run it in a container.
# Sourced, with `root` set to the folder of the code.
: "${root:?}"

fail() {
    echo "error: $1" >&2
    exit 2
}

# shellcheck source=slurm/site.sh
source "$root/slurm/site.sh"

export PYTHON=${PYTHON:-$root/.venv/bin/python}
# The modules of this folder, and not those of the one that Python is started in.
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1

# in_job: how a job runs Python; step_options: of the steps that do so. Elsewhere it is $PYTHON.
in_job=("$PYTHON") step_options=()
mounts=$PWD,$root${CAMBIUM_MOUNTS:+,$CAMBIUM_MOUNTS}
case $CAMBIUM_CONTAINER in
'') ;;
*.sif) in_job=(apptainer exec --nv --pwd "$PWD" --bind "$mounts" "$CAMBIUM_CONTAINER" python) ;;
*)
    in_job=(python)
    pairs=''
    for folder in ${mounts//,/ }; do pairs+=${pairs:+,}$folder:$folder; done
    step_options=("--container-image=$CAMBIUM_CONTAINER" "--container-mounts=$pairs" "--container-workdir=$PWD")
    ;;
esac
if [[ ${#in_job[@]} == 1 && ${#step_options[@]} == 0 || -z ${SLURM_JOB_ID:-} ]] && ! command -v "$PYTHON" >/dev/null; then
    fail "there is no $PYTHON: run make in $root, or set PYTHON to a Python 3.11 to 3.13 that has Cambium installed"
fi

once() { # Python once, on this host
    if [[ -z ${SLURM_JOB_ID:-} ]]; then
        "$PYTHON" "$@"
    elif ((${#step_options[@]})); then
        srun --ntasks=1 --nodes=1 "${step_options[@]}" "${in_job[@]}" "$@"
    else
        "${in_job[@]}" "$@"
    fi
}
