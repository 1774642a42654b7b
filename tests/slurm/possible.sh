#!/usr/bin/env bash
# Whether this machine can have a cluster of virtual hosts, once SLURM is installed. Exit code 1, and says why in a way
# that cannot be overlooked, where it cannot.
set -euo pipefail

cannot() {
    local line='################################################################################'
    printf '\n%s\n# NOT TESTED: the cluster. %s\n# Everything under tests/slurm was left out.\n%s\n\n' "$line" "$1" "$line" >&2
    exit 1
}

export PATH=$PATH:/usr/sbin:/sbin
[[ $EUID == 0 ]] || cannot "It needs root, to make network namespaces."
unshare --uts --ipc --pid --net --mount --fork true 2>/dev/null || cannot "This machine may not make namespaces."
if [[ -n $(bash "$(dirname "${BASH_SOURCE[0]}")/absent.sh") ]]; then
    command -v apt-get >/dev/null || cannot "SLURM is not installed, and there is no apt-get."
fi
if command -v ip >/dev/null && [[ ! -e /sys/class/net/cambium0 ]]; then
    ip link add cambium0 type bridge 2>/dev/null || cannot "This machine may not make network interfaces."
    ip link del cambium0
    { ip netns add cambium-probe && ip netns del cambium-probe; } 2>/dev/null || cannot "This machine may not make network namespaces."
fi
