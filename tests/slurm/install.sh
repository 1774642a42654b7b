#!/usr/bin/env bash
# Makes a machine of which possible.sh says that it can have a cluster of virtual hosts fit for one: installs SLURM from
# Debian's packages where it is missing. Exit code 1, with the reason, when the cluster cannot be started then.
set -euo pipefail

fail() {
    echo "error: the cluster cannot be tested: $1" >&2
    exit 1
}

absent() { bash "$(dirname "${BASH_SOURCE[0]}")/absent.sh" | paste -sd ' '; }

if [[ -n $(absent) ]]; then
    echo "there is no $(absent): installing slurm-wlm and munge"
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -qq && apt-get install -qq -y --no-install-recommends slurm-wlm munge iproute2 util-linux; } \
        </dev/null >/tmp/cambium-apt.log 2>&1 || fail "apt-get could not install SLURM: $(tail -n 1 /tmp/cambium-apt.log)"
    [[ -z $(absent) ]] || fail "apt-get installed SLURM, and there is still no $(absent)"
fi
bridge=/sys/class/net/cambium0
if [[ -e $bridge ]]; then
    folder=$(<$bridge/ifalias)
    # Tests hold a lock as long as they live; what they have left is nobody's then. A cluster without one is a person's.
    if [[ -e $folder/tests ]] && flock --nonblock "$folder/tests" true; then
        echo "stopping the cluster of tests that were killed: $folder"
        bash "$(dirname "${BASH_SOURCE[0]}")/cluster.sh" stop "$folder"
    else
        fail "one is running: bash tests/slurm/cluster.sh stop $folder"
    fi
fi
