#!/usr/bin/env bash
# A SLURM cluster of virtual hosts (node1, node2, ...) on this machine: network namespaces on a bridge. Needs root.
#
#   bash tests/slurm/cluster.sh start FOLDER [NODES]      3 nodes of 4 CPUs and 2 declared GPUs; then
#   export SLURM_CONF=FOLDER/slurm.conf                   sinfo, sbatch, ... as on any cluster
#   bash tests/slurm/cluster.sh cut FOLDER NODE           a power cut: every process of the host is gone at once
#   bash tests/slurm/cluster.sh boot FOLDER NODE          power again
#   bash tests/slurm/cluster.sh stop FOLDER
#
# Partitions: main, and urgent, whose jobs preempt those of main. Everything it writes is in FOLDER, but for
# /etc/netns/NODE/hosts. One cluster at a time.
set -euo pipefail

[[ $# -ge 2 ]] || { sed -n '/^# A SLURM/,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" >&2; exit 2; }
action=$1
mkdir -p "$2"
dir=$(cd "$2" && pwd)
export SLURM_CONF=$dir/slurm.conf
address() { echo "10.231.0.$((10 + ${1#node}))"; }

boot() { # the host's own network, process table, name and /dev/shm; killing its init kills all of it
    local node=$1
    setsid ip netns exec "$node" unshare --uts --ipc --pid --fork --kill-child --mount-proc \
        bash -c "hostname $node; mount -t tmpfs -o size=2g tmpfs /dev/shm
                 slurmd -N $node -f $SLURM_CONF; while :; do sleep 86400 & wait \$!; done" \
        >>"$dir/log/host-$node" 2>&1 </dev/null &
    echo $! >"$dir/$node.host"
}

cut() { # the first is unshare's: --kill-child passes its death on to the init, whose end is that of every process
    local pids
    while pids=$(ip netns pids "$1") && [[ -n $pids ]]; do
        xargs kill -9 <<<"$pids" 2>/dev/null || true
        sleep 0.05
    done
}

stop() { # also what a machine that went down has left: then the numbers in files are of no process, or of another one
    local file node
    for file in "$dir"/{slurmctld,munged}.pid; do
        [[ ! -s $file || $(cat "/proc/$(<"$file")/comm" 2>/dev/null) != "$(basename "$file" .pid)" ]] ||
            kill -9 "$(<"$file")" 2>/dev/null || true
    done
    for node in $(ip netns list | sed -n 's/^\(node[0-9]*\).*/\1/p'); do
        cut "$node"
        ip netns del "$node"
        rm -rf "/etc/netns/$node"
    done
    rm -f "$dir"/*.host "$dir"/*.pid
    ip link del cambium0 2>/dev/null || true
}

configure() {
    local nodes=$1 gpu node number
    for gpu in gpu0 gpu1; do mknod "$dir/$gpu" c 1 3; done # GPUs that can be asked for and counted
    cat >"$SLURM_CONF" <<END
ClusterName=cambium
SlurmctldHost=$(hostname)(10.231.0.1)
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket,cred_expire=15
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
SlurmdParameters=config_overrides
SlurmUser=root
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/log/slurmctld
SlurmdLogFile=$dir/log/slurmd-%n
ReturnToService=2
SlurmdTimeout=10
KillWait=5
JobCompType=jobcomp/filetxt
JobCompLoc=$dir/log/jobs
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10
END
    printf 'CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n' >"$dir/cgroup.conf"
    printf 'Name=gpu Type=a100 File=%s/gpu[0-1]\n' "$dir" >"$dir/gres.conf"
    printf '127.0.0.1 localhost\n10.231.0.1 %s\n' "$(hostname)" >"$dir/hosts"
    for ((number = 1; number <= nodes; number++)); do
        node=node$number
        echo "NodeName=$node NodeAddr=$(address "$node") CPUs=4 RealMemory=8000 Gres=gpu:a100:2" >>"$SLURM_CONF"
        echo "$(address "$node") $node" >>"$dir/hosts"
    done
}

start() {
    local nodes=$1 number node
    if [[ -e /sys/class/net/cambium0 ]]; then
        echo "error: there is a cluster already: bash $0 stop $(</sys/class/net/cambium0/ifalias)" >&2
        exit 2
    fi
    mkdir -p "$dir"/{state,spool,munge,log}
    chmod 700 "$dir/munge"
    dd if=/dev/urandom of="$dir/munge/key" bs=128 count=1 status=none
    chmod 600 "$dir/munge/key"
    munged --force --key-file="$dir/munge/key" --socket="$dir/munge/socket" --pid-file="$dir/munged.pid" \
        --log-file="$dir/munge/log" --seed-file="$dir/munge/seed" 2>"$dir/log/munged"
    chmod 755 "$dir" "$dir/munge"
    ip link add cambium0 type bridge
    ip link set cambium0 alias "$dir"
    ip addr add 10.231.0.1/24 dev cambium0
    ip link set cambium0 up
    configure "$nodes"
    slurmctld -f "$SLURM_CONF"
    for ((number = 1; number <= nodes; number++)); do
        node=node$number
        ip netns add "$node"
        ip link add "v$node" type veth peer name eth0 netns "$node"
        ip link set "v$node" master cambium0 up
        ip -n "$node" addr add "$(address "$node")/24" dev eth0
        ip -n "$node" link set eth0 up
        ip -n "$node" link set lo up
        mkdir -p "/etc/netns/$node" "$dir/spool/$node"
        cp "$dir/hosts" "/etc/netns/$node/hosts" # ip netns exec binds it over /etc/hosts
        boot "$node"
    done
    for ((number = 0; number < 120; number++)); do
        [[ $(sinfo --noheader --states=idle --partition=main --format=%D 2>/dev/null) != "$nodes" ]] || return 0
        sleep 0.5
    done
    echo "error: the nodes did not come up within a minute; see $dir/log" >&2
    sinfo >&2 || true
    exit 1
}

case $action in
start) start "${3:-3}" ;;
boot | cut) "$action" "$3" ;;
stop) stop ;;
*) echo "error: $action is none of start, cut, boot, stop" >&2 && exit 2 ;;
esac
