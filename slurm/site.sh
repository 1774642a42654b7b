# shellcheck shell=bash
# What this cluster needs: the only file here that a site edits. Whatever is set in the environment wins.

# ---- where jobs go: any of sbatch's own variables (man sbatch, INPUT ENVIRONMENT VARIABLES)
# export SBATCH_PARTITION=${SBATCH_PARTITION-gpu}
# export SBATCH_ACCOUNT=${SBATCH_ACCOUNT-my-project}
# export SBATCH_QOS=${SBATCH_QOS-normal}
# export SBATCH_TIMELIMIT=${SBATCH_TIMELIMIT-24:00:00}   # a stage that needs longer saves, leaves and is requeued

# ---- the nodes
export CAMBIUM_RANKS_PER_NODE=${CAMBIUM_RANKS_PER_NODE-8} # GPUs of a node
export CAMBIUM_GPUS=${CAMBIUM_GPUS-1}                     # 0: nodes without GPUs; none are asked for
export CAMBIUM_CPUS_PER_RANK=${CAMBIUM_CPUS_PER_RANK-}    # of a job's tasks; empty: the node's, shared out
export CAMBIUM_MIN_SHM_GB=${CAMBIUM_MIN_SHM_GB-1}         # preflight: free in /dev/shm, which NCCL needs
export CAMBIUM_MIN_DISK_GB=${CAMBIUM_MIN_DISK_GB-5}       # preflight: free in the run's folder and in TMPDIR

# ---- software
# module purge && module load cuda/12.8
export PYTHON=${PYTHON-} # a Python 3.11 to 3.13 with Cambium's dependencies; empty: .venv/bin/python of this folder
# A container with Cambium's dependencies, instead of .venv: an image of slurm/cambium.def for Apptainer (a path that
# ends in .sif), or anything that pyxis' --container-image takes. Then PYTHON is what curriculum.sh checks with.
export CAMBIUM_CONTAINER=${CAMBIUM_CONTAINER-}
export CAMBIUM_MOUNTS=${CAMBIUM_MOUNTS-} # further folders to be seen in it, with commas: /scratch,/data

# ---- the network
# export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME-ib0} GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME-ib0}
# export NCCL_IB_HCA=${NCCL_IB_HCA-mlx5}

# ---- how hard a stage tries
export CAMBIUM_MAX_RESTARTS=${CAMBIUM_MAX_RESTARTS-20} # requeues of one job
