"""A handle on the cluster of cluster.sh: its jobs, its ranks, its power."""

import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

SCRIPT = Path(__file__).with_name("cluster.sh")
POLL = 0.1  # seconds


@dataclass(frozen=True)
class Rank:
    """A rank's process; `node` is its virtual host."""

    number: int
    pid: int
    node: str

    def reads(self, folder: Path) -> bool:
        """Whether it has a tensor file of a checkpoint in this folder open."""
        try:
            files = [os.readlink(entry) for entry in Path(f"/proc/{self.pid}/fd").iterdir()]
        except OSError:  # it has ended meanwhile, or closed one
            return False
        return any(file.startswith(f"{folder}/") and file.endswith(".safetensors") for file in files)

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)


class Cluster:
    """Three virtual hosts of two ranks each; as a context manager, from boot to the last process."""

    nodes = ("node1", "node2", "node3")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        hidden = ("SLURM", "SBATCH", "CAMBIUM")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        self.environment = kept | {
            "SLURM_CONF": f"{folder}/slurm.conf",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "passive",
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
        }

    def __enter__(self) -> Self:
        self._lock = (self.folder / "tests").open("w")  # see install.sh: tells that these tests live
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._script("start", self.folder, len(self.nodes))
        return self

    def __exit__(self, *_: object) -> None:
        self._script("stop", self.folder)
        self._lock.close()

    def _script(self, *words: object) -> None:
        self.run("bash", SCRIPT, *words)

    def run(self, *command: object, cwd: Path | None = None, code: int = 0, **environment: str) -> str:
        """What a command printed, on both streams; AssertionError when it ends with another code."""
        done = subprocess.run(
            [str(word) for word in command],
            cwd=cwd,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == code, f"{command} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def cut(self, node: str) -> None:
        """The node's power fails."""
        self._script("cut", self.folder, node)

    def boot(self, node: str) -> None:
        """Power again, until SLURM may use the node."""
        self._script("boot", self.folder, node)
        self.until(lambda: node in self.idle(), f"{node} is back")

    @contextmanager
    def full_shm(self, node: str) -> Iterator[None]:
        """The node's /dev/shm has no room."""
        init = (self.folder / f"{node}.host").read_text().strip()
        inside = ("nsenter", "--mount", f"--target={init}")
        self.run(*inside, "mount", "-o", "remount,size=1m", "/dev/shm")
        try:
            yield
        finally:
            self.run(*inside, "mount", "-o", "remount,size=2g", "/dev/shm")

    def idle(self) -> list[str]:
        """Hosts without a job that SLURM may use."""
        return self.run("sinfo", "--noheader", "-N", "--states=idle", "--partition=main", "--format=%N").split()

    def all_idle(self) -> None:
        """Waits until every host is free."""
        self.until(lambda: len(self.idle()) == len(self.nodes), "all hosts are free")

    def job(self, number: str) -> dict[str, str]:
        """What SLURM knows of a job, by the names of `scontrol show job`."""
        fields = self.run("scontrol", "show", "job", "--oneliner", number).split(" ")
        return dict(field.split("=", 1) for field in fields if "=" in field)

    def jobs(self) -> list[str]:
        """Numbers of the jobs that wait or run."""
        return self.run("squeue", "--noheader", "--format=%A").split()

    def state(self, number: str) -> str:
        return self.job(number)["JobState"]

    def seconds(self, number: str) -> int:
        """How long the job has run since its last start."""
        days, _, time = self.job(number)["RunTime"].rpartition("-")
        hours, minutes, seconds = map(int, time.split(":"))
        return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds

    def ended(self, number: str) -> str:
        """The state in which a job ends; waits for it."""
        final = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
        self.until(lambda: self.state(number) in final, f"job {number} ends")
        return self.state(number)

    def ranks(self, job: str) -> list[Rank]:
        """The training ranks of a job that live now, in order."""
        found = []
        for process in Path("/proc").iterdir():
            if not process.name.isdecimal():
                continue
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
                if words[1:3] != [b"-m", b"pretrain"]:
                    continue
                pairs = (pair.split(b"=", 1) for pair in (process / "environ").read_bytes().split(b"\0") if pair)
                values = {name.decode(): value.decode() for name, value in pairs}
            except OSError:  # it has ended meanwhile
                continue
            if values.get("SLURM_JOB_ID") == job and values["SLURM_PROCID"] == values.get("RANK"):
                found.append(Rank(int(values["RANK"]), int(process.name), values["SLURMD_NODENAME"]))
        return sorted(found, key=lambda rank: rank.number)

    def batch_host(self, job: str) -> str:
        return self.job(job)["BatchHost"]

    def other_host(self, job: str) -> str:
        """A host of the job that is not its batch host."""
        hosts = {rank.node for rank in self.ranks(job)}
        return min(hosts - {self.batch_host(job)})

    def until(self, condition: Callable[[], object], what: str, seconds: float = 600, poll: float = POLL) -> None:
        """Waits for a condition; AssertionError, with the queue, when it does not come."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"not within {seconds:g} s: {what}\n{self.run('squeue')}{self.run('sinfo')}"
            time.sleep(poll)


def ready() -> str:
    """Why there can be no cluster here; empty where there can."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    absent = [name for name in ("slurmctld", "slurmd", "sbatch", "munged", "ip") if not shutil.which(name, path=path)]
    if absent:
        return f"there is no {', '.join(absent)}: make test-cluster installs SLURM where it may"
    return "" if os.geteuid() == 0 else "it needs root, to make network namespaces"
