"""What a GPU makes of a training step: MFU and tokens a second, memory beside the plan, where the time goes.

Writes gpu.md and gpu.json into a folder as it goes, most important figures first, and ends in its time with what it
has: the cases run in a process of their own, which is ended when one takes too long, and a death costs that case alone.
MFU is of the model FLOPs of pretrain.estimate.flops: 6 for each weight that is multiplied with, and
12 x layers x heads x head_dim x seq_len for attention, a token, without a deduction for causality.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import IO, Any

from benchmarks.gpu import tables
from benchmarks.gpu.cases import Case, all_cases
from benchmarks.report import Report
from pretrain.errors import UserError
from pretrain.runtime.files import write_file

TOOLS = Path(__file__).parents[2]
START = 90.0  # seconds that a process may take to start
LEAST = 15.0  # seconds without which a case is not begun
TRAINED = ("model", "seq_len", "compiled", "micro_batch", "tokens_per_second", "mfu", "peak_gib", "plan_gib")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench.py gpu`."""
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"), help="folder (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=5, help="all it may take (default: %(default)s)")
    parser.add_argument(
        "--tiny", action="store_true", help="tiny models, on a CPU where there is no GPU: only to see that it runs"
    )
    parser.add_argument("--only", default="", help="the cases whose name contains this text")


def run(options: argparse.Namespace) -> Report:
    """Measure case after case. Raises UserError where there is no GPU and nothing tiny was asked for."""
    import torch

    if not options.tiny and not torch.cuda.is_available():
        raise UserError("there is no CUDA device: --tiny tries the benchmark on a CPU")
    there = all_cases(options.tiny)
    chosen = [case for case in there if options.only in case.name]
    if not chosen:
        raise UserError(f"no case contains {options.only!r}: {'; '.join(case.name for case in there)}")
    results = Results(options.output, time.monotonic() + 60 * options.minutes)
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        _measure(chosen, results)
    except KeyboardInterrupt:
        results.problem("the benchmark", "was stopped")
    finally:
        signal.signal(signal.SIGTERM, before)
        results.write()
    return results.report()


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


class Results:
    """What has been measured so far, on the disk after each figure."""

    def __init__(self, folder: Path, deadline: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.deadline, self.began = folder, deadline, time.monotonic()
        self.data: dict[str, Any] = {"machine": {}, "date": time.strftime("%F"), "rows": [], "problems": []}

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def add(self, case: Case, row: dict[str, Any]) -> None:
        self.data["rows"].append({"case": case.name, "kind": case.kind, **row})
        self.write()

    def problem(self, what: str, why: str) -> None:
        """Something that was not measured."""
        self.data["problems"].append({"case": what, "why": why})
        print(f"{what}: {why}", file=sys.stderr, flush=True)
        self.write()

    def write(self) -> None:
        self.data["seconds"] = time.monotonic() - self.began
        write_file(self.folder / "gpu.json", (json.dumps(self.data, indent=1) + "\n").encode())
        write_file(self.folder / "gpu.md", tables.markdown(self.data).encode())

    def report(self) -> Report:
        rows = [{key: row.get(key) for key in TRAINED} for row in self.data["rows"] if row["kind"] == "train"]
        notes = [f"{p['case']}: {p['why']}" for p in self.data["problems"]]
        return Report(
            f"Training steps on {self.data['machine'].get('device', 'nothing: no process started')}",
            {"all figures": str(self.folder / "gpu.md"), "seconds": self.data["seconds"]},
            rows or [dict.fromkeys(TRAINED)],
            [*notes, "plan and peak: GiB; the plan's without its allowances."],
        )


class Worker:
    """A process that measures; its words go to a log."""

    module = "benchmarks.gpu.worker"

    def __init__(self, log: IO[bytes]) -> None:
        path = os.pathsep.join([str(TOOLS), str(TOOLS.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
        self.process = subprocess.Popen(
            [sys.executable, "-m", self.module],
            env={**os.environ, "PYTHONPATH": path.rstrip(os.pathsep), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
        self.answers: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with suppress(ValueError):  # cut off by its death
                self.answers.put(json.loads(line))
        self.answers.put(None)

    def ask(self, case: Case) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # the answer says that it is dead
            self.process.stdin.write((json.dumps(case.to_json()) + "\n").encode())
            self.process.stdin.flush()

    def answer(self, seconds: float) -> dict[str, Any] | None:
        """The next one; None when it is dead. Raises queue.Empty when there is none in so many seconds."""
        return self.answers.get(timeout=max(seconds, 0.01))

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _measure(chosen: list[Case], results: Results) -> None:
    worker: Worker | None = None
    with (results.folder / "worker.log").open("wb") as log:
        try:
            for number, case in enumerate(chosen):
                if results.left() < LEAST:
                    for other in chosen[number:]:
                        results.problem(other.name, "no time was left")
                    return
                print(f"{results.left():4.0f} s left: {case.name}", file=sys.stderr, flush=True)
                if not worker:
                    worker = Worker(log)
                    if not _started(worker, results):
                        return
                if not _case(worker, case, results):
                    worker.kill()
                    worker = None
        finally:
            if worker:
                worker.kill()


def _started(worker: Worker, results: Results) -> bool:
    """Whether the process is ready; what it runs on."""
    for answer in _answers(worker, time.monotonic() + min(START, results.left() - 2)):
        if answer and "machine" in answer:
            results.data["machine"] = answer["machine"]
            return True
        break
    results.problem("the benchmark", "its process did not start; see worker.log")
    return False


def _case(worker: Worker, case: Case, results: Results) -> bool:
    """Whether the process may go on with the next one."""
    worker.ask(case)
    end = min(time.monotonic() + case.seconds, results.deadline - 2)
    for answer in _answers(worker, end):
        if answer is None:
            results.problem(case.name, f"its process ended with {worker.process.wait()}; see worker.log")
        elif "row" in answer:
            results.add(case, answer["row"])
            continue
        elif "error" in answer:
            results.problem(case.name, answer["error"])
        return "done" in (answer or {})
    results.problem(case.name, "took too long and was ended")
    return False


def _answers(worker: Worker, end: float) -> Iterator[dict[str, Any] | None]:
    """What a process says until `end`, by the monotonic clock."""
    with suppress(queue.Empty):
        while True:
            yield worker.answer(end - time.monotonic())
