"""python -m pretrain.cli.status CONFIG: how far each stage is, from its folder, and what the queue says of its job.

slurm/status.sh calls it with the queue: lines of `squeue --format='%k|%A|%T|%r'` (folder, job, state, reason)
on standard input with --queue.
"""

import argparse
import json
import sys
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from growth.describe import table as aligned
from pretrain import config
from pretrain.cli import command
from pretrain.config import Curriculum, Stage
from pretrain.runtime.files import is_done
from pretrain.stage import mirrored
from pretrain.stage.metrics import read

EXAMPLE = (
    "examples:\n  bash slurm/status.sh configs/demo.yaml\n  python -m pretrain.cli.status configs/demo.yaml --json"
)


@dataclass(frozen=True)
class Job:
    """A job of the queue: its number, its state and why it waits."""

    number: str
    state: str
    reason: str


@dataclass(frozen=True)
class Status:
    """How far a stage is; what is not known is None.

    tokens and target are of this stage alone; speed is in tokens per second; seconds are those left; silent is how many
    have passed since the heartbeat of a stage that runs; mirror is why its mirror is behind.
    """

    stage: str
    state: str
    step: int | None = None
    tokens: int | None = None
    target: int | None = None
    loss: float | None = None
    speed: float | None = None
    seconds: float | None = None
    silent: float | None = None
    restarts: int = 0
    job: str | None = None
    mirror: str | None = None


def read_queue(lines: Iterable[str]) -> dict[Path, Job]:
    """The jobs by the folder of their stage, without the jobs that are no stage's."""
    jobs = {}
    for line in lines:
        folder, *job = line.rstrip("\n").rsplit("|", 3)
        if len(job) == 3 and folder.startswith("/"):
            jobs[Path(folder)] = Job(*job)
    return jobs


def status_of(curriculum: Curriculum, stage: Stage, jobs: Mapping[Path, Job]) -> Status:
    """What is known of one stage now."""
    folder = curriculum.folder / stage.name
    job = jobs.get(folder.resolve())
    metrics = folder / "metrics.jsonl"
    records = list(read(metrics)) if metrics.exists() else []
    trained = [record for record in records if "loss" in record]
    tokens = records[-1]["tokens"] - records[0]["tokens"] if records else None
    target = stage.train.tokens or None
    speed = trained[-1].get("tokens_per_second") if trained else None
    done = is_done(folder)
    return Status(
        stage=stage.name,
        state=_state(folder, job, done),
        step=records[-1]["step"] if records else None,
        tokens=tokens,
        target=target,
        loss=trained[-1]["loss"] if trained else None,
        speed=speed,
        seconds=0.0 if done else max(0, target - tokens) / speed if target and speed and tokens is not None else None,
        silent=_silence(folder / "heartbeat") if job and job.state == "RUNNING" else None,
        restarts=_restarts(folder / "jobs.tsv"),
        job=job.number if job else None,
        mirror=mirror["problem"] if (mirror := mirrored.state_of(folder)) else None,
    )


def _state(folder: Path, job: Job | None, done: bool) -> str:
    if done:
        return "done"
    if job:
        return job.state.lower() + (f" ({job.reason})" if job.reason not in ("None", "") else "")
    if (folder / "STOPPED").exists():
        return "stopped by STOP"
    return "not queued" if (folder / "checkpoints").is_dir() else "new"


def _silence(path: Path) -> float | None:
    try:
        return max(0.0, time.time() - json.loads(path.read_text())["time"])
    except (OSError, ValueError, KeyError):
        return None


def _restarts(path: Path) -> int:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return max(0, sum(line.endswith("\tstart") for line in lines) - 1)


def table(rows: Collection[Status]) -> str:
    """The stages as text, one a line."""
    lines = [("stage", "state", "step", "tokens", "loss", "tokens/s", "left", "restarts", "job")]
    for row in rows:
        tokens = "" if row.tokens is None else f"{row.tokens:.3g}" + (f" of {row.target:.3g}" if row.target else "")
        state = row.state + ("" if row.silent is None or row.silent < 60 else f", silent for {_time(row.silent)}")
        lines.append(
            (
                row.stage,
                state,
                "" if row.step is None else f"{row.step:,}",
                tokens,
                "" if row.loss is None else f"{row.loss:.4f}",
                "" if row.speed is None else f"{row.speed:,.0f}",
                "" if row.seconds is None else _time(row.seconds),
                str(row.restarts),
                row.job or "",
            )
        )
    behind = [f"the mirror of {row.stage} is behind: {row.mirror}" for row in rows if row.mirror]
    return "\n".join([aligned(lines), *behind])


def _time(seconds: float) -> str:
    minutes, hours = int(seconds // 60) % 60, int(seconds // 3600)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"


def work(options: argparse.Namespace) -> command.Answer:
    """Raises UserError for a curriculum that cannot be read."""
    curriculum = config.load(options.config)
    jobs = read_queue(sys.stdin) if options.queue else {}
    rows = [status_of(curriculum, stage, jobs) for stage in curriculum.stages]
    return command.Answer(table(rows), {"stages": [asdict(row) for row in rows]})


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="the curriculum, a YAML file")
    parser.add_argument("--queue", action="store_true", help="read the queue from standard input")


if __name__ == "__main__":
    sys.exit(command.run(f"{__doc__}\n{EXAMPLE}", arguments, work))
