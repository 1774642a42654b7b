"""A curriculum on the cluster: submitted by curriculum.sh, watched through its folder, compared file by file."""

import json
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.slurm.cluster import Cluster, Rank

ROOT = Path(__file__).parents[2]
STEPS = 40
SAMPLES, LENGTH = 12, 64  # of a batch
STAGES = {"seed": {"dp": 2}, "wide": {"tp": 2, "dp": 2}, "deep": {"pp": 3, "dp": 2}}
"""The stages of the demo on 1, 2 and 3 nodes of two ranks."""


def checkout(folder: Path) -> Path:
    """The project as a user has it, with this cluster in its site.sh."""
    for name in ("growth", "pretrain", "slurm", "tools", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / ".venv").symlink_to((ROOT / ".venv").resolve())
    site = (folder / "slurm/site.sh").read_text()
    edits = {"CAMBIUM_RANKS_PER_NODE": 2, "CAMBIUM_GPUS": 0, "CAMBIUM_MIN_DISK_GB": 0}
    for name, value in edits.items():
        site, count = re.subn(rf"\$\{{{name}-\d+\}}", f"${{{name}-{value}}}", site)
        assert count == 1, f"site.sh has no {name}"
    (folder / "slurm/site.sh").write_text(site)
    return folder


def write_config(path: Path, corpus: Path, output: Path) -> Path:
    """The demo's curriculum with shorter stages, a smaller batch and layouts for the cluster."""
    demo = yaml.safe_load((ROOT / "configs/demo.yaml").read_text())
    demo["output"] = str(output)
    demo["data"] |= {"corpus": str(corpus), "window": 64}
    demo["train"] |= {"seq_len": LENGTH, "global_batch": SAMPLES, "micro_batch": 2, "eval_interval": 10}
    demo["train"]["eval_bytes"] = 4096
    demo["checkpoint"] = {"interval": 4}
    demo["log"] = {"interval": 1, "wandb": False}
    for stage in demo["stages"]:
        stage["parallel"] = STAGES[stage["name"]]
        stage["train"] |= {"tokens": STEPS * SAMPLES * LENGTH, "warmup_tokens": 4 * SAMPLES * LENGTH}
    path.write_text(yaml.safe_dump(demo))
    return path


@dataclass(frozen=True)
class Run:
    """A run of the curriculum; `folder` holds a folder for each stage."""

    cluster: Cluster
    code: Path
    config: Path
    folder: Path

    def change(self, **sections: dict[str, object]) -> None:
        """Changes the configuration of every stage."""
        found = yaml.safe_load(self.config.read_text())
        for part in (found, *found["stages"]):
            for section, values in sections.items():
                if part is found or section in part:
                    part[section] = part.get(section, {}) | values
        self.config.write_text(yaml.safe_dump(found))

    def corpus(self) -> str:
        return yaml.safe_load(self.config.read_text())["data"]["corpus"]

    def submit(self, *stages: str, **environment: str) -> dict[str, str]:
        """Submits the stages (all of them, if none is named) from its own folder; gives the job of each."""
        words = ("bash", self.code / "slurm/curriculum.sh", self.config, *stages)
        said = self.cluster.run(*words, cwd=self.config.parent, **environment)
        return dict(re.findall(r"^(\w+) is job (\d+)", said, re.MULTILINE))

    def step(self, stage: str) -> int:
        """The last step that the stage has reported; -1 before its first validation."""
        try:
            lines = (self.folder / stage / "metrics.jsonl").read_text().splitlines()
            return json.loads(lines[-1])["step"]
        except (OSError, ValueError, IndexError):
            return -1

    @contextmanager
    def paused_at(self, stage: str, job: str, step: int) -> Iterator[list[Rank]]:
        """Stops the ranks of the job once the stage has come to this step, gives them, and lets them go on.

        So what is done to them comes neither too early nor too late, however slow the machine is.
        """
        self.cluster.until(lambda: self.step(stage) >= step, f"{stage} is at step {step}\n{self.log(stage)}", poll=0.01)
        ranks = self.cluster.ranks(job)
        for rank in ranks:
            rank.signal(signal.SIGSTOP)
        assert ranks, f"{stage} was at step {step}, and has no ranks now\n{self.log(stage)}"
        assert self.step(stage) < STEPS, "the stage was over before its ranks could be stopped"
        try:
            yield ranks
        finally:
            for rank in ranks:
                with suppress(ProcessLookupError):
                    rank.signal(signal.SIGCONT)

    def log(self, stage: str) -> str:
        """What the stage's jobs have printed."""
        return "".join(path.read_text() for path in sorted((self.folder / stage).glob("job-*.log")))

    def happened(self, stage: str) -> list[str]:
        """What became of each start of the stage, from jobs.tsv."""
        lines = (self.folder / stage / "jobs.tsv").read_text().splitlines()
        return [line.split("\t")[4] for line in lines if not line.endswith("\tstart")]

    def grows(self, stage: str, parent: str, job: str) -> None:
        """Waits until a rank of the job reads its parent's checkpoint, and leaves all ranks stopped there."""
        own = self.folder / stage
        parents = self.folder / parent / "checkpoints"
        self._stop_when(job, lambda rank: rank.reads(parents), lambda: not (own / "events").exists(), "grows")

    def saves(self, stage: str, job: str) -> None:
        """Waits until a checkpoint of the job is half written, and leaves all ranks stopped there."""
        folder = self.folder / stage / "checkpoints"

        def partial() -> bool:
            return any(folder.glob(".step-*.partial"))

        self._stop_when(job, lambda rank: rank.number == 0 and partial(), partial, "saves")

    def _stop_when(self, job: str, begins: Callable[[Rank], bool], lasts: Callable[[], bool], what: str) -> None:
        """Stops the ranks when it begins for one of them; when it was over by then, lets them go on to the next."""

        def caught() -> bool:
            ranks = self.cluster.ranks(job)
            if not any(begins(rank) for rank in ranks):
                return False
            for rank in ranks:
                rank.signal(signal.SIGSTOP)
            if lasts():
                return True
            for rank in ranks:
                rank.signal(signal.SIGCONT)
            return False

        self.cluster.until(caught, f"job {job} {what}", poll=0.001)

    def finished(self, stage: str) -> dict[str, bytes]:
        """The tensor files of the last checkpoint of a stage that is done."""
        assert (self.folder / stage / "DONE").exists(), self.log(stage)
        newest = max((self.folder / stage / "checkpoints").glob("step-*"))
        assert newest.name == f"step-{STEPS:08d}"
        return {path.name: path.read_bytes() for path in newest.glob("*.safetensors")}

    def same_as(self, other: "Run", *stages: str) -> None:
        """Weights and moments of the stages are, bit for bit, those of the other run, and so are the losses."""
        for stage in stages:
            mine, theirs = self.finished(stage), other.finished(stage)
            assert mine.keys() == theirs.keys()
            assert len(mine) >= 3
            for name, data in mine.items():
                assert data == theirs[name], f"{stage}: {name} differs"
            assert self.losses(stage) == other.losses(stage)

    def losses(self, stage: str) -> list[float]:
        records = map(json.loads, (self.folder / stage / "metrics.jsonl").read_text().splitlines())
        return [record["loss"] for record in records if "loss" in record]
