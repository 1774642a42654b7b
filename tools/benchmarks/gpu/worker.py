"""The process that measures: cases come in as lines of JSON, measurements go out as lines of JSON.

Started by benchmarks.gpu, which ends it when a case takes too long and starts another one when it dies.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import IO, Any

import torch

import growth
from benchmarks.gpu import trace
from benchmarks.gpu.cases import MOST_LAYERS, Case
from growth import Architecture
from pretrain.config import Train
from pretrain.config.keys import Model
from pretrain.data.samples import causal
from pretrain.estimate import memory
from pretrain.estimate.flops import mfu, peak_flops, training_flops
from pretrain.layout import Layout
from pretrain.runtime import device, ranks

STEPS = 4  # that are measured
GIB = 2**30
ROUNDS = 12  # of a copy or a product; the first ones are not counted
LEFT = 1 << 30  # bytes of the device that may still be in use between two cases
CPU_MEMORY = 4 << 30  # what a tiny run on a CPU takes the machine to have

Row = dict[str, Any]


def timed(work: Callable[[], object], rounds: int) -> list[float]:
    """Seconds of each call; of a GPU by its own clock, without waiting for it in between."""
    if not torch.cuda.is_available():
        times = [time.perf_counter()]
        for _ in range(rounds):
            work()
            times.append(time.perf_counter())
        return [b - a for a, b in pairwise(times)]
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
    torch.cuda.synchronize()
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) / 1e3 for a, b in pairwise(marks)]


def machine() -> Row:
    """What the figures were measured on."""
    import platform
    from importlib import metadata

    found: Row = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    for name in ("triton", "megatron-core", "deepspeed", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {"device": torch.cuda.get_device_name(), "memory_gib": properties.total_memory / GIB}
        found |= {"multiprocessors": properties.multi_processor_count}
    else:
        found |= {"device": "cpu", "memory_gib": CPU_MEMORY / GIB}
    return found


def ceilings(case: Case) -> Iterator[Row]:
    """What copies and matrix products reach on this card, on random data."""
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = 1 << (20 if case.tiny else 30)
    one, other = (torch.empty(size, dtype=torch.uint8, device=where).random_() for _ in range(2))
    host = torch.empty(size, dtype=torch.uint8, pin_memory=where.type == "cuda").random_()
    copies = {"on the device, read and written": (one, other, 2), "host to device": (one, host, 1)}
    for what, (to, source, times) in {**copies, "device to host": (host, one, 1)}.items():
        seconds = _typical(lambda to=to, source=source: to.copy_(source, non_blocking=True))  # type: ignore[misc]
        yield {"what": f"copy, {what}", "value": times * size / seconds / 1e9, "unit": "GB/s"}
    del one, other, host, copies, to, source
    for dtype, sides in ((torch.bfloat16, (8192, 4096)), (torch.float32, (4096,))):
        for n in sides:
            n = n // 64 if case.tiny else n
            a, b = (torch.randn(n, n, device=where, dtype=dtype) for _ in range(2))
            seconds = _typical(lambda a=a, b=b: a @ b)  # type: ignore[misc]
            name = str(dtype).removeprefix("torch.")
            yield {"what": f"{name} product, {n} cubed", "value": 2 * n**3 / seconds / 1e12, "unit": "TFLOP/s"}


def _typical(work: Callable[[], object]) -> float:
    return median(timed(work, ROUNDS)[2:])


def settings(case: Case, micro_batch: int, micros: int = 1) -> Train:
    """The case as a stage's section `train`, for the plan."""
    return Train(
        case.seq_len,
        micro_batch * micros,
        lr=1e-4,
        tokens=1,
        micro_batch=micro_batch,
        precision="bf16",
        compile=case.compiled,
    )


def available() -> int:
    """Bytes of the device."""
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else CPU_MEMORY


def planned(arch: Architecture, case: Case, micro_batch: int) -> int:
    """Bytes that the plan wants, allowances included."""
    return memory.of_rank(arch, Layout.make(arch.layers), settings(case, micro_batch), 0).total


def architecture(case: Case) -> Architecture:
    """The model of a case; where the number of layers is open, as many as the plan says will fit."""
    sizes = case.sizes()
    if sizes["layers"]:
        return Architecture(Model.family, sizes)
    fits = [Architecture(Model.family, {**sizes, "layers": 1})]
    for layers in range(2, (4 if case.tiny else MOST_LAYERS) + 1):
        arch = Architecture(Model.family, {**sizes, "layers": layers})
        if planned(arch, case, 1) < 0.88 * available():
            fits.append(arch)
    return fits[-1]


def micro_batches(case: Case, arch: Architecture) -> list[int]:
    """Those of the case; in place of 0 the largest power of two, of at most `most` tokens, that should fit."""
    powers = [2**k for k in range(20) if 2**k * case.seq_len <= case.most]
    fits = max((n for n in powers if planned(arch, case, n) < 0.95 * available()), default=1)
    return [micro or fits for micro in case.micro_batches]


class Trained:
    """An engine with drawn weights, and its steps on drawn tokens."""

    def __init__(self, case: Case, arch: Architecture, micro_batch: int) -> None:
        from pretrain.engine.engine import Adam, Engine
        from pretrain.engine.megatron import Numerics

        numerics = Numerics("bf16", compile=case.compiled)
        self.case, self.arch = case, arch
        layout = Layout.make(arch.layers)
        self.engine = Engine(arch, layout, numerics, Adam(), seq_len=case.seq_len, micro_batch=micro_batch)
        torch.manual_seed(0)
        for owned in self.engine.owned:
            owned.exp_avg.zero_()
            owned.exp_avg_sq.zero_()
            if len(owned.parameter.shape) > 1:
                owned.weight.normal_(0, 0.02)
            else:
                owned.weight.fill_(1)
        self.engine.describe_generations(lambda box: torch.zeros(box.box.shape, dtype=torch.uint8), [0])
        self.engine.publish_weights()

    def stepping(self, micro_batch: int, micros: int) -> Callable[[], float]:
        """A step of so many micro-batches; returns its loss."""
        self.engine.micro_batch = micro_batch
        shape = (micro_batch * micros, self.case.seq_len + 1)
        tokens = torch.randint(self.arch.sizes["vocab"], shape, generator=torch.Generator().manual_seed(1))
        samples = causal(tokens)
        return lambda: self.engine.train_step(samples, 1e-4).loss


def train(case: Case) -> Iterator[Row]:
    """Tokens a second, MFU and memory of each micro-batch, until one does not fit; then half of a single one."""
    arch = architecture(case)
    sizes = micro_batches(case, arch)
    trained = Trained(case, arch, sizes[0])
    for micro_batch in sizes:
        micros = max(1, case.tokens // (micro_batch * case.seq_len))
        try:
            row = _measured(trained, micro_batch, micros)
        except torch.OutOfMemoryError as problem:
            row = {"model": case.model, "seq_len": case.seq_len, "compiled": case.compiled, "micro_batch": micro_batch}
            row["full"] = str(problem).splitlines()[0]
        yield row
        if "full" in row:
            if len(case.micro_batches) > 1 or micro_batch == 1:
                break
            sizes.append(micro_batch // 2)
            trained.engine.free()
            trained = Trained(case, arch, sizes[-1])
    trained.engine.free()
    if torch.cuda.is_available() and torch.cuda.memory_allocated() > LEFT:
        raise MemoryError(f"{torch.cuda.memory_allocated() / GIB:.1f} GiB were not given back")


def _measured(trained: Trained, micro_batch: int, micros: int) -> Row:
    case, arch = trained.case, trained.arch
    step = trained.stepping(micro_batch, micros)
    began = time.perf_counter()
    losses = [step()]
    waits = _waits(lambda: losses.append(step()))
    warm_up = time.perf_counter() - began
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    times = timed(lambda: losses.append(step()), STEPS)
    tokens, seconds = micro_batch * micros * case.seq_len, median(times)
    flops, peak = (
        training_flops(arch, case.seq_len),
        peak_flops(torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu", "bf16"),
    )
    plan = memory.of_rank(arch, Layout.make(arch.layers), settings(case, micro_batch, micros), 0)
    row: Row = {
        "model": case.model,
        "layers": arch.layers,
        "parameters": arch.parameters(),
        "seq_len": case.seq_len,
        "compiled": case.compiled,
        "micro_batch": micro_batch,
        "micro_batches": micros,
        "ms_per_step": 1e3 * seconds,
        "fastest_ms": 1e3 * min(times),
        "slowest_ms": 1e3 * max(times),
        "tokens_per_second": tokens / seconds,
        "flops_per_token": flops,
        "tflops": flops * tokens / seconds / 1e12,
        "mfu": mfu(flops, tokens / seconds, 1, peak) if peak else None,
        "warm_up_seconds": warm_up,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "plan_gib": (plan.total - plan.allowance) / GIB,
        "plan_with_allowance_gib": plan.total / GIB,
    }
    if torch.cuda.is_available():
        row["peak_gib"] = torch.cuda.max_memory_allocated() / GIB
        row["reserved_gib"] = torch.cuda.max_memory_reserved() / GIB
        row["waits_per_step"] = waits
    if not all(abs(loss) < 100 for loss in losses):  # nor when it is no number
        row["error"] = f"the losses are {losses}"
    return row


def _waits(step: Callable[[], object]) -> int:
    """How often the host waits for the GPU in a step, as far as torch notices; 0 without one."""
    if not torch.cuda.is_available():
        step()
        return 0
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        step()
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in seen)


def profile(case: Case) -> Iterator[Row]:
    """What the time of a step of a few micro-batches goes into."""
    from torch.profiler import ProfilerActivity, schedule
    from torch.profiler import profile as profiler

    arch = architecture(case)
    (micro_batch, *_) = micro_batches(case, arch)
    trained, micros = Trained(case, arch, micro_batch), 1 if case.tiny else 4
    step = trained.stepping(micro_batch, micros)
    step()
    activity = ProfilerActivity.CUDA if torch.cuda.is_available() else ProfilerActivity.CPU
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        with profiler(
            activities=[activity],
            schedule=schedule(wait=0, warmup=1, active=1),
            on_trace_ready=lambda found: found.export_chrome_trace(str(path)),
        ) as running:
            for _ in range(2):
                step()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                running.step()
        found = trace.shares(trace.read(path))
    yield {
        "model": case.model,
        "seq_len": case.seq_len,
        "compiled": case.compiled,
        "micro_batch": micro_batch,
        "micro_batches": micros,
        **found,
    }
    trained.engine.free()


def event(case: Case) -> Iterator[Row]:
    """How long a stage takes to read its grown shards from its parent's files, beside merely reading the files."""
    from pretrain.checkpoint import Checkpointer, Reader
    from pretrain.engine.shards import boxes, fill, publish
    from pretrain.schedule.curve import Birth
    from pretrain.schedule.progress import Progress
    from pretrain.state import State

    before = case.before()
    old, new = architecture(before), architecture(case)
    plan = growth.between(old, new, {}, seed=1, init_std=0.02)
    first = growth.Generations.first(old)

    def state(arch: Architecture, generations: growth.Generations) -> State:
        births = tuple(Birth(0, "bench", 0) for _ in range(generations.count))
        return State(arch, generations, births, Progress(), None)

    with tempfile.TemporaryDirectory() as folder:
        parent = Trained(before, old, 1).engine
        seconds = {}
        began = _now()
        with Checkpointer(Path(folder)) as checkpointer:
            fields = state(old, first).fields("bench", {}, parent.adam.steps)
            checkpointer.save(0, boxes(parent), fields)
        seconds["save"] = _now() - began
        parent.free()
        root = next(Path(folder).glob("step-*"))
        size, seconds["read"] = _read(root)
        engine = Trained(case, new, 1).engine
        for _ in range(2):  # the first time, loops are compiled
            with Reader(root) as reader:
                began = _now()
                fill(engine, plan, reader)
                seconds["fill"] = _now() - began
                publish(engine, state(new, plan.generations(first)))
                seconds["publish"] = _now() - began - seconds["fill"]
        engine.free()
    yield {
        "from": before.model,
        "into": case.model,
        "parameters": new.parameters(),
        "file_gb": size / 1e9,
        "grown_gb": 12 * new.parameters() / 1e9,
        **{f"{name}_seconds": value for name, value in seconds.items()},
        "fill_over_read": seconds["fill"] / seconds["read"],
    }


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _read(folder: Path) -> tuple[int, float]:
    """Bytes of the files of a folder, and the seconds of reading them, from the page cache, into one buffer."""
    buffer, size, began = memoryview(bytearray(1 << 24)), 0, time.perf_counter()
    for path in sorted(folder.iterdir()):
        with path.open("rb", buffering=0) as file:
            while got := file.readinto(buffer):
                size += got
    return size, time.perf_counter() - began


MEASURED: dict[str, Callable[[Case], Iterator[Row]]] = {
    "ceilings": ceilings,
    "train": train,
    "profile": profile,
    "event": event,
}


def main(answers: IO[str]) -> None:
    """Measures until there are no more cases. One that fails ends the process: what it left behind is gone with it."""

    def answer(**row: Any) -> None:
        print(json.dumps(row), file=answers, flush=True)

    device.prepare(tp=1)
    import pretrain.engine  # noqa: F401  # why it comes first is said there

    ranks.join()
    answer(machine=machine())
    for line in sys.stdin:
        case = Case.from_json(json.loads(line))
        try:
            with torch.no_grad() if case.kind == "ceilings" else torch.enable_grad():
                for row in MEASURED[case.kind](case):
                    answer(row=row)
        except Exception as problem:
            traceback.print_exc()
            answer(error=f"{type(problem).__name__}: {problem}")
            return
        answer(done=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module=r"megatron|torch|deepspeed")
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log
    main(out)
    out.flush()
    os._exit(0)  # a GPU that hangs is not waited for
