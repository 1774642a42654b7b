"""python -m pretrain.cli.preflight: a short all-reduce over all ranks of a job step, before anything slow starts.

Every rank joins, and sums a buffer with the others a few times. Rank 0 says how fast it was. Exit code 1, with a line
"bad HOST ..." for each host whose ranks did not come or whose sums are wrong, when that fails or takes too long.
"""

import argparse
import os
import socket
import sys
import threading
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from pretrain.cli import command
from pretrain.runtime.device import own_gpu

EXAMPLE = "example:\n  srun bash slurm/rank.sh python -m pretrain.cli.preflight --seconds 120"
ROUNDS = 3


def reduce(megabytes: float, rank: int, world: int) -> tuple[bool, float]:
    """Whether the sums over all ranks are right, and the seconds of the last round (collective)."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    right, began = True, time.monotonic()
    for number in range(ROUNDS):
        values = torch.full((int(megabytes * 2**20 / 4),), float(rank + number), device=device)
        began = time.monotonic()
        dist.all_reduce(values)
        right &= bool((values == world * (world - 1) // 2 + number * world).all())  # fp32 holds these sums exactly
    return right, time.monotonic() - began


def main(arguments: list[str] | None = None) -> int:
    """The command line; gives the exit code."""
    parser = command.make_parser(f"{__doc__}\n{EXAMPLE}", "python -m pretrain.cli.preflight")
    parser.add_argument("--seconds", type=float, default=120, help="all it may take (default: %(default)s)")
    parser.add_argument("--megabytes", type=float, default=64, help="of the buffer (default: %(default)s)")
    options = parser.parse_args(arguments)
    return command.guarded(lambda: check(options), ())


def check(options: argparse.Namespace) -> int:
    """Does the all-reduce on this rank and returns its exit code, as the module's docstring says."""
    rank, world = (int(os.environ.get(name, default)) for name, default in VARIABLES)
    hosts = os.environ.get("CAMBIUM_HOSTS", socket.gethostname()).split()
    per_node = world // len(hosts)
    host_of_rank = [hosts[number // per_node] for number in range(world)]
    limit = timedelta(seconds=options.seconds + 60)  # longer than rank 0's alarm, which knows who is missing
    address, port = os.environ.get("MASTER_ADDR", "localhost"), int(os.environ.get("MASTER_PORT", "29500"))
    store = dist.TCPStore(  # type: ignore[attr-defined]
        address, port, is_master=rank == 0, timeout=limit, wait_for_workers=False
    )
    store.set(f"come/{rank}", "")

    def give_up() -> None:
        come = [store.check([f"come/{number}"]) for number in range(world)]
        absent = dict.fromkeys(host for host, has_come in zip(host_of_rank, come, strict=True) if not has_come)
        for host in absent:
            print(f"bad {host} its ranks did not come", flush=True)
        if not absent:
            print(f"error: the all-reduce over {world} ranks took more than {options.seconds:g} s", file=sys.stderr)
        os._exit(1)

    if rank == 0:
        alarm = threading.Timer(options.seconds, give_up)
        alarm.daemon = True
        alarm.start()
    if torch.cuda.is_available():
        torch.cuda.set_device(own_gpu())
    dist.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo", store=store, rank=rank, world_size=world, timeout=limit
    )
    right, seconds = reduce(options.megabytes, rank, world)
    store.set(f"done/{rank}", "right" if right else "wrong")
    done = [f"done/{number}" for number in range(world)]
    store.wait(done)  # nobody leaves while another one still reads from it
    if rank:
        store.set(f"left/{rank}", "")
        return 0
    wrong = dict.fromkeys(host for key, host in zip(done, host_of_rank, strict=True) if store.get(key) != b"right")
    store.wait([f"left/{number}" for number in range(1, world)])
    alarm.cancel()
    for host in wrong:
        print(f"bad {host} the sums of its ranks are wrong", flush=True)
    speed = options.megabytes / 1024 / max(seconds, 1e-9)
    print(f"all-reduce over {world} ranks: {options.megabytes:g} MB at {speed:.2f} GB/s", file=sys.stderr)
    return 1 if wrong else 0


VARIABLES = (("RANK", "0"), ("WORLD_SIZE", "1"))

if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # the ranks need not wait for each other's sockets to close
