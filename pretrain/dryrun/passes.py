"""What one rank of a stage goes through: every path that CUDA would take, from the first start to a resume."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook

from pretrain.checkpoint.background import Snapshot
from pretrain.config import Curriculum, Stage
from pretrain.dryrun import store
from pretrain.dryrun.collectives import RECORD
from pretrain.dryrun.feed import Nothing
from pretrain.dryrun.findings import FINDINGS
from pretrain.dryrun.kernels import KERNELS
from pretrain.dryrun.memory import MEMORY
from pretrain.engine.engine import Engine
from pretrain.engine.shards import boxes
from pretrain.families.text import in_tokens
from pretrain.guard.switches import Switches
from pretrain.guard.watchdog import Watchdog
from pretrain.layout import Layout
from pretrain.stage.resolved import Resolved
from pretrain.stage.run import Run
from pretrain.stage.trial import start_with_the_best
from pretrain.state import State

STEP = "step"
"""The phase of a turn of the training loop after the first one, whose figures are those of a step."""
LEFT = 64 << 20
"""Bytes that may be left of an engine that was freed: tables of positions that modules keep, samples."""


@dataclass
class Seen:
    """Of one rank; kernels, traffic and calls of one step."""

    rank: int
    micro_batches: int
    kernels: dict[str, Any] = field(default_factory=dict)
    traffic: dict[str, int] = field(default_factory=dict)
    shapes: list[str] = field(default_factory=list)


class Passes:
    """A rank of a stage. `go` makes all passes; an exception in one of them is a finding, and the last pass."""

    def __init__(self, curriculum: Curriculum, stage: Stage, layout: Layout, rank: int) -> None:
        self._layout, self._rank = layout, rank
        self._given = curriculum
        self._stage = stage
        train = stage.train
        self.seen = Seen(rank, train.global_batch // (train.micro_batch * layout.dp))

    def go(self) -> Seen:
        with tempfile.TemporaryDirectory(prefix="cambium-dryrun-") as folder:
            self._curriculum = replace(self._given, output=folder)
            self._folder = self._curriculum.folder / self._stage.name
            try:
                self._all()
            except Exception as error:
                FINDINGS.failed(error)
        return self.seen

    def _all(self) -> None:
        stage, parent = self._stage, self._curriculum.parent(self._stage)
        self._folder.mkdir(parents=True)
        teacher = stage.distill.teacher
        if teacher and "/" not in teacher and (parent is None or parent.name != teacher):
            self._pass("teacher", lambda: store.finish(self._curriculum, self._curriculum.stage(teacher)))
        if parent:
            self._pass("parent", lambda: store.finish(self._curriculum, parent))
        began = time.monotonic()
        how = "start" if parent is None else "trial and growth" if stage.grow.trial.candidates else "growth"
        engine, state = self._pass(how, self._start)
        with self._run(engine, state) as run:
            self._pass("first validation", lambda: self._shapes(run, began))
            self._pass("first step", lambda: self._turn(run))
            self._pass(STEP, lambda: self._turn(run))
            self._figures()
            self._pass("validation", run.validate)
            self._pass("save", lambda: Snapshot().take(boxes(run.engine)))
            for number in range(len(stage.patches)):
                self._patch(run, number)
            state = run.state
            self._pass("free", lambda: self._free(run))
        store.write(self._curriculum, stage, state)
        engine, state = self._pass("resume", self._start)
        with self._run(engine, state) as run:
            self._pass("step after a resume", lambda: self._turn(run))
            self._pass("free again", lambda: self._free(run))

    def _pass(self, name: str, work: Callable[[], Any]) -> Any:
        FINDINGS.phase = name
        MEMORY.begin(name)
        KERNELS.clear()
        RECORD.bytes.clear()
        return work()

    def _start(self) -> tuple[Engine, State]:
        watchdog = Watchdog(self._folder, self._rank, 0)
        self._switches = Switches(self._folder, lambda: False)
        started = start_with_the_best(self._resolved(), self._switches, watchdog)
        assert started is not None
        return started

    def _run(self, engine: Engine, state: State) -> Run:
        watchdog = Watchdog(self._folder, self._rank, 0)
        return Run(self._resolved(), watchdog, engine, state)

    def _resolved(self) -> Resolved:
        return Resolved(self._curriculum, self._stage, in_tokens(self._stage), self._layout, Nothing(self._stage))

    def _turn(self, run: Run) -> None:
        """A turn of the training loop, as in pretrain.stage.train."""
        run.step(self._switches.wish)

    def _shapes(self, run: Run, began: float) -> None:
        """The first validation, in which every module says what it was given and what it made, once."""
        names = {m: f"{n}.{name}" for n, chunk in enumerate(run.engine.chunks) for name, m in chunk.named_modules()}
        seen: set[torch.nn.Module] = set()

        def note(module: torch.nn.Module, given: Any, made: Any) -> None:
            if module in names and module not in seen:
                seen.add(module)
                said = f"{type(module).__name__}: {_shape(given)} -> {_shape(made)}"
                self.seen.shapes.append(f"{names[module]} {said}")

        hook = register_module_forward_hook(note)
        run.begin(began, None)
        hook.remove()

    def _figures(self) -> None:
        self.seen.kernels = {name: asdict(kernel) for name, kernel in KERNELS.by_name.items()}
        self.seen.traffic = {f"{what} over {n}": size for (what, n), size in RECORD.bytes.items()}

    def _patch(self, run: Run, number: int) -> None:
        """A layer more inside the stage, from the checkpoint of now."""
        store.write(self._curriculum, self._stage, run.state)
        self._pass(f"patch {number}", run.grow)
        self._pass(f"step after patch {number}", lambda: self._turn(run))

    def _free(self, run: Run) -> None:
        run.engine.free()
        gc.collect()
        if MEMORY.now > LEFT:
            FINDINGS.add("error", f"{MEMORY.now / 2**20:.0f} MiB are left on the device of an engine that was freed")


def _shape(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(_shape(x) for x in value) + ")"
    return "-" if value is None else type(value).__name__
