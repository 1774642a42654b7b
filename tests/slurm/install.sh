#!/usr/bin/env bash
# Makes this machine fit for a cluster of virtual hosts: installs SLURM from Debian's packages where it is missing.
# Exit code 1, and says so in a way that cannot be overlooked, where that is not possible.
set -euo pipefail

cannot() {
    local line='################################################################################'
    printf '\n%s\n# NOT TESTED: the cluster. %s\n# Everything under tests/slurm was left out.\n%s\n\n' "$line" "$1" "$line" >&2
    exit 1
}

export PATH=$PATH:/usr/sbin:/sbin
[[ $EUID == 0 ]] || cannot "It needs root, to make network namespaces."
if ! command -v slurmctld slurmd sbatch munged ip unshare >/dev/null; then
    command -v apt-get >/dev/null || cannot "SLURM is not installed, and there is no apt-get."
    echo "installing slurm-wlm and munge"
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -qq && apt-get install -qq -y --no-install-recommends slurm-wlm munge iproute2 util-linux; } \
        </dev/null >/tmp/cambium-apt.log 2>&1 || cannot "apt-get could not install SLURM: $(tail -n 1 /tmp/cambium-apt.log)"
fi
if [[ -e /sys/class/net/cambium0 ]]; then
    cannot "One is running: bash tests/slurm/cluster.sh stop $(</sys/class/net/cambium0/ifalias)"
fi
ip link add cambium0 type bridge 2>/dev/null || cannot "This machine may not make network interfaces."
ip link del cambium0
{ ip netns add cambium-probe && ip netns del cambium-probe; } 2>/dev/null || cannot "This machine may not make network namespaces."
unshare --uts --ipc --pid --net --mount --fork true 2>/dev/null || cannot "This machine may not make namespaces."
