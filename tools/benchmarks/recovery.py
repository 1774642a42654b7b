"""How long a stage stands still when a rank is killed, and when a node loses its power: until the next optimizer step.

Ranks of a small stage on this machine are killed at random, and the stage is started again at once, as a scheduler
would. With --cluster the same on the SLURM of virtual hosts that `make test-cluster` uses (it needs root): ranks are
killed, and the power of nodes is cut. At the end the stage must have the weights, bit for bit, of one that was left
alone: then nothing was lost.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import yaml
from tqdm import tqdm

from benchmarks.report import Report
from pretrain.checkpoint import find
from pretrain.cli.command import positive
from pretrain.data.corpus.encoders import SentencePieceEncoder
from pretrain.data.corpus.prepare import prepare
from pretrain.data.corpus.sources import Source
from pretrain.errors import UserError
from pretrain.runtime.startup import STARTS

ROOT = Path(__file__).parents[2]
STAGE, RANKS = "train", 2
INTERVAL = 4  # steps between two checkpoints
SAMPLES, LENGTH = 8, 64  # of a batch
POLL = 0.005  # seconds
PATIENCE = 600.0  # seconds until a stage that does not come back is given up


@dataclass(frozen=True)
class Recovery:
    """One kill: seconds by part, in the order in which they passed, and the steps that are trained again."""

    parts: Mapping[str, float]
    steps_lost: int

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench.py recovery`."""
    parser.add_argument(
        "--kills", type=positive, default=30, help="ranks killed on this machine (default: %(default)s)"
    )
    parser.add_argument(
        "--cluster", type=positive, default=0, metavar="N", help="N ranks killed and N power cuts in SLURM"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the ranks (default: %(default)s)")


def run(options: argparse.Namespace) -> Report:
    """Kill and measure; see the notes of the report for the columns. Raises UserError when something was lost."""
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="bench-recovery-") as name, redirect_stdout(sys.stderr):
        rows = [_here(Path(name), options.kills, draw)]
        if options.cluster:
            rows += _on_cluster(Path(name), options.cluster, draw)
    return Report(
        "From a kill to the next optimizer step",
        {"ranks": RANKS, "steps between checkpoints": INTERVAL, "kills": options.kills, "seed": options.seed},
        rows,
        (
            "seconds: median and worst; of the parts, medians: noticed, until the stage's processes have ended; again,",
            "until it is started (the scheduler's part); launch, until its ranks are; the rest is their own start.",
            "steps lost: trained again. save stall: how long training stood still for a checkpoint, median of all.",
            "nothing was lost: every stage has the weights, bit for bit, of one that was left alone",
        ),
    )


def _row(what: str, found: Sequence[Recovery], stalls: Sequence[float]) -> dict[str, Any]:
    seconds = [each.seconds for each in found]
    row: dict[str, Any] = {"what": what, "kills": len(found)}
    row |= {"median": statistics.median(seconds), "worst": max(seconds)}
    for part in dict.fromkeys(part for each in found for part in each.parts):
        row[part] = statistics.median(each.parts.get(part, 0.0) for each in found)
    row["steps_lost"] = statistics.mean(each.steps_lost for each in found)
    row["save_stall"] = statistics.median(stalls) if stalls else None
    return row


# ---- on this machine


def _here(folder: Path, kills: int, draw: random.Random) -> dict[str, Any]:
    """The row of ranks that are killed on this machine."""
    corpus, steps = _corpus(folder), (kills + 1) * 3 * INTERVAL
    alone, killed = (_Stage(_config(folder, name, corpus, steps)) for name in ("alone", "killed"))
    found: list[Recovery] = []
    with alone.running() as process:
        alone.ends(process)
    with killed.running() as process, tqdm(total=kills, desc="kills", disable=None, leave=False) as bar:
        while len(found) < kills:
            # Never so late that the stage could be over before the kill.
            at = min(killed.step() + draw.randint(1, 2 * INTERVAL), 3 * INTERVAL * (len(found) + 1))
            killed.until(lambda at=at: killed.step() >= at, process)  # type: ignore[misc]
            found.append(killed.kill(process, draw))
            bar.update()
        killed.ends(process)
    _same(alone.folder, killed.folder)
    return _row("rank killed, this machine", found, killed.stalls())


class _Process:
    """The launcher of a stage, which may be started again."""

    def __init__(self, config: Path) -> None:
        self.config = config
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "pretrain.cli.launch", self.config, "--stage", STAGE]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with self.config.with_suffix(".log").open("ab") as log:
            self._launcher = psutil.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def wait(self) -> int:
        return self._launcher.wait()

    def alive(self) -> bool:
        return self._launcher.poll() is None

    def ranks(self) -> list[psutil.Process]:
        """The ranks, in no order."""
        found = []
        for child in self._launcher.children(recursive=True):
            with suppress(psutil.Error):
                if "RANK" in child.environ():
                    found.append(child)
        return found

    def end(self) -> None:
        for each in [*self.ranks(), self._launcher] if self.alive() else []:
            with suppress(psutil.Error):
                each.kill()
        self.wait()


class _Stage:
    """The stage of a config, watched through its folder."""

    def __init__(self, config: Path) -> None:
        self.config = config
        self.folder = config.with_suffix("") / "bench" / STAGE

    @contextmanager
    def running(self) -> Iterator[_Process]:
        """The processes of the stage, which are gone afterwards."""
        process = _Process(self.config)
        try:
            yield process
        finally:
            process.end()

    def ends(self, process: _Process) -> None:
        """Waits for the end of the stage. Raises UserError when it does not reach it."""
        code = process.wait()
        if code or not (self.folder / "DONE").exists():
            raise UserError(f"the stage ended with code {code}:\n{self.config.with_suffix('.log').read_text()[-2000:]}")

    def records(self) -> list[dict[str, float]]:
        """Of metrics.jsonl, but for a line that is being written."""
        try:
            lines = (self.folder / "metrics.jsonl").read_text().split("\n")[:-1]
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines]

    def step(self) -> int:
        """The newest step that it has reported."""
        return max((int(record["step"]) for record in self.records()), default=0)

    def stalls(self) -> list[float]:
        """Seconds for which training stood still, of each save."""
        return [record["checkpoint_stall_seconds"] for record in self.records() if "checkpoint_stall_seconds" in record]

    def until(self, condition: Callable[[], object], process: _Process | None = None) -> None:
        """Waits for the condition. Raises UserError when it never is."""
        end = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > end or (process and not process.alive()):
                log = self.config.with_suffix(".log")
                raise UserError(f"the stage did not go on:\n{log.read_text()[-2000:] if log.exists() else ''}")
            time.sleep(POLL)

    def kill(self, process: _Process, draw: random.Random) -> Recovery:
        """Kills a rank, starts the stage again, and waits for a step of it."""
        starts, step = len(self.starts()), self.step()
        victims = process.ranks()
        begun = time.time()
        draw.choice(victims).kill()
        process.wait()
        ended = time.time()
        process.start()
        return self.back(step, starts, {"noticed": ended - begun, "again": 0.0}, ended, process)

    def back(
        self, step: int, starts: int, parts: Mapping[str, float], again: float, process: _Process | None = None
    ) -> Recovery:
        """The recovery of a stage that had come to `step` in so many starts, and was started again at the time `again`;
        waits for its first step. parts: what passed before."""
        self.until(lambda: len(self.starts()) > starts, process)
        start = self.starts()[-1]
        launch = {"launch": start["time"] - start["seconds"] - again}
        return Recovery({**parts, **launch, **start["parts"]}, max(0, step - start["step"] + 1))

    def starts(self) -> list[dict[str, Any]]:
        """What each start took: see pretrain.runtime.startup."""
        try:
            lines = (self.folder / STARTS).read_text().split("\n")[:-1]
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines]


def _corpus(folder: Path) -> Path:
    """The demo's text, prepared."""
    from demo_corpus import chapters

    text, corpus = folder / "text.jsonl", folder / "corpus"
    text.write_text("".join(json.dumps(row) + "\n" for row in chapters()[:200]))
    prepare(Source((text,)), corpus, SentencePieceEncoder(vocab_size=1024))
    return corpus


def _config(folder: Path, name: str, corpus: Path, steps: int) -> Path:
    """A curriculum of one stage that makes so many steps."""
    path = folder / f"{name}.yaml"
    train = {"seq_len": LENGTH, "global_batch": SAMPLES, "micro_batch": SAMPLES // RANKS, "lr": 1e-3}
    train |= {"eval_interval": 10 * INTERVAL, "eval_bytes": 4096, "tokens": steps * SAMPLES * LENGTH}
    stage = {
        "name": STAGE,
        "model": {"vocab": 1024, "hidden": 64, "layers": 2, "heads": 4, "ffn": 192},
        "parallel": {"dp": RANKS},
        "train": train,
    }
    whole = {
        "name": "bench",
        "output": str(folder / name),
        "data": {"corpus": str(corpus), "window": 64},
        "checkpoint": {"interval": INTERVAL},
        "log": {"interval": 1, "wandb": False},
        "stages": [stage],
    }
    path.write_text(yaml.safe_dump(whole))
    return path


def _same(alone: Path, killed: Path) -> None:
    """That the last checkpoints of both hold the same. Raises UserError when they do not."""
    tensors = []
    for folder in (alone, killed):
        path = find(folder / "checkpoints").path
        assert path is not None
        tensors.append({file.name: file.read_bytes() for file in path.glob("*.safetensors")})
    if tensors[0] != tensors[1]:
        raise UserError(f"{killed} does not have the weights of the stage that was left alone: something was lost")


# ---- on the cluster of virtual hosts


def _on_cluster(folder: Path, kills: int, draw: random.Random) -> Iterator[dict[str, Any]]:
    """A row for killed ranks, and one for power cuts."""
    sys.path.insert(0, str(ROOT))  # the cluster is one of the tests'
    slurm, run = (import_module(f"tests.slurm.{name}") for name in ("cluster", "run"))
    if reason := slurm.ready():
        raise UserError(f"--cluster: {reason}")
    corpus, code, steps = folder / "corpus", run.checkout(folder / "code"), (kills + 1) * 3 * INTERVAL
    alone = _Stage(_config(folder, "undisturbed", corpus, steps))
    with alone.running() as process:
        alone.ends(process)
    with slurm.Cluster(folder / "cluster") as cluster:
        for what, hurt in (("rank killed, SLURM", _kill_rank), ("power cut, SLURM", _cut_power)):
            stage = _Stage(_config(folder, what.split()[0], corpus, steps))
            found: list[Recovery] = []
            job = run.Run(cluster, code, stage.config, stage.folder.parent).submit(STAGE)[STAGE]
            while len(found) < kills:
                at = min(stage.step() + draw.randint(1, 2 * INTERVAL), 3 * INTERVAL * (len(found) + 1))
                stage.until(lambda at=at, stage=stage: stage.step() >= at)  # type: ignore[misc]
                found.append(_on_a_job(cluster, job, stage, partial(hurt, cluster, job, draw)))
            if cluster.ended(job) != "COMPLETED":
                raise UserError(f"job {job} did not complete: see {stage.folder}")
            _same(alone.folder, stage.folder)
            yield _row(what, found, stage.stalls())


def _kill_rank(cluster: Any, job: str, draw: random.Random) -> Callable[[], None]:
    """Kills a rank of a job; gives what there is to mend afterwards."""
    draw.choice(cluster.ranks(job)).signal(signal.SIGKILL)
    return lambda: None


def _cut_power(cluster: Any, job: str, draw: random.Random) -> Callable[[], None]:
    """Cuts the power of a host of a job; gives what boots it again."""
    node = draw.choice(cluster.ranks(job)).node
    cluster.cut(node)
    return partial(cluster.boot, node)


def _on_a_job(cluster: Any, job: str, stage: _Stage, hurt: Callable[[], Callable[[], None]]) -> Recovery:
    starts, step, restarts = len(stage.starts()), stage.step(), cluster.job(job)["Restarts"]
    begun = time.time()
    mend = hurt()
    cluster.until(lambda: cluster.job(job)["Restarts"] != restarts, f"job {job} is requeued")
    noticed = time.time()
    cluster.until(lambda: cluster.state(job) == "RUNNING", f"job {job} runs again")
    again = time.time()
    found = stage.back(step, starts, {"noticed": noticed - begun, "again": again - noticed}, again)
    mend()
    return found
