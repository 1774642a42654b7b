# shellcheck shell=bash
# What stage.sh and curriculum.sh share: where the code and its Python are. Sourced, with `root` set.
: "${root:?}"
export PYTHON=${PYTHON:-$root/.venv/bin/python}
if [[ ! -x $PYTHON ]] && ! command -v "$PYTHON" >/dev/null; then
    echo "error: there is no $PYTHON: run make in $root, or set PYTHON to a Python 3.11 that has Cambium installed" >&2
    exit 2
fi

fail() {
    echo "error: $1" >&2
    exit 2
}
