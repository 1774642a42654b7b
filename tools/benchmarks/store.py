"""The checkpoint store against `cp` and fsync of the same bytes, and against PyTorch DCP and DeepSpeed.

cold: the files were forced to the disk and dropped from the kernel's cache (posix_fadvise) before they are read; the
column "disk" says how much then came from the disk. warm: they are in the cache. The yardstick is taken again next to
each figure, and is cold or warm as the figure is.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import growth
from benchmarks import store_ranks
from benchmarks.ranks import Cost, command_cost, together
from benchmarks.report import Report, spread
from benchmarks.scratch import scratch
from growth import Architecture, Box, Plan
from pretrain.checkpoint import KINDS, Checkpointer, Reader, step_folder, write_checkpoint
from pretrain.checkpoint.blocks import BLOCK
from pretrain.cli.command import positive
from pretrain.config.keys import Model
from pretrain.errors import UserError

MIB = 1 << 20
SAVED, LOADED = 2, 3  # ranks
PROCESSES = 2  # of offline growth


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench.py store`."""
    sizes = parser.add_argument_group("model (LLaMA-2); its state is 12 bytes a parameter")
    for name, value in (("vocab", 16000), ("hidden", 768), ("layers", 10), ("heads", 12), ("ffn", 2048)):
        sizes.add_argument(f"--{name}", type=int, default=value, help="default: %(default)s")
    parser.add_argument("--rounds", type=positive, default=3, help="rounds, medians are shown (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path(), help="where to write, on the disk to be measured")
    parser.add_argument("--skip", nargs="*", choices=("dcp", "deepspeed"), default=[], help="other tools to leave out")


def run(options: argparse.Namespace) -> Report:
    """Measure; see the notes of the report for the columns. What was written is removed."""
    torch.set_num_threads(1)
    if not options.folder.is_dir():
        raise UserError(f"--folder {options.folder} is no folder")
    sizes = {name: getattr(options, name) for name in ("vocab", "hidden", "layers", "heads", "ffn")}
    heads = options.heads
    arch = Architecture(Model.family, {**sizes, "kv_heads": heads, "head_dim": options.hidden // heads})
    with scratch(options.folder, "bench-store-") as folder:
        bench = _Bench(folder, arch, options.rounds)
        with tqdm(desc="measurements", disable=None, leave=False) as bar:
            for row in bench.rows(options.skip):
                bar.update()
                bar.write(f"{row['operation']}, {row['cache']}: {row['seconds']:.2f} s", file=sys.stderr)
                bench.found.append(row)
    settings = {
        "parameters": arch.parameters(),
        "state": f"{12 * arch.parameters() / 1e9:.2f} GB",
        **arch.sizes,
        "rounds": options.rounds,
    }
    notes = [
        "x cp: how many times as fast as cp + fsync of as many bytes as are written (or loaded); medians of rounds.",
        "read: bytes asked of files by all processes; disk: what of it came from the disk and not from the cache.",
        "peak: memory above what the processes had before, of all together.",
        "ds_to_universal is a command, run once: time and peak begin with the start of its interpreter (about 0.5 GB).",
    ]
    return Report("The checkpoint store against cp + fsync", settings, bench.found, notes)


class _Bench:
    def __init__(self, folder: Path, arch: Architecture, rounds: int) -> None:
        self.folder, self.arch, self.rounds = folder, arch, rounds
        self.found: list[dict[str, Any]] = []
        self.root = folder / "ours"
        self.path = step_folder(self.root, store_ranks.STEP)

    def rows(self, skip: list[str]) -> Iterator[dict[str, Any]]:
        """Every measurement in turn; later ones read what earlier ones wrote."""
        state = self._state()
        yield self._row("save, 1 process", "-", partial(self._save, state), fresh=self.root)
        for cache in ("warm", "cold"):
            yield self._row("load all, 1 process", cache, partial(self._load, state))
        state.clear()
        yield self._part()
        for name, sizes, policy in self._growths():
            plan = growth.between(self.arch, self.arch.replace(sizes), policy, seed=0, init_std=0.02)
            target = self.folder / "grown"
            for processes, cache in ((1, "warm"), (PROCESSES, "warm"), (PROCESSES, "cold")):
                label = f"grow, {name}, {processes} process{'es' * (processes > 1)}"
                yield self._row(label, cache, partial(self._grow, plan, target, processes), written=target)
        yield self._ranks(f"save, {SAVED} ranks: ours", store_ranks.save_ours, SAVED, self.root, fresh=self.root)
        for cache in ("warm", "cold"):
            yield self._ranks(f"load, {LOADED} ranks: ours", store_ranks.load_ours, LOADED, self.path, cache=cache)
        if "dcp" not in skip:
            where = self.folder / "dcp"
            yield self._ranks(f"save, {SAVED} ranks: DCP", store_ranks.save_dcp, SAVED, where, fresh=where)
            for cache in ("warm", "cold"):
                yield self._ranks(f"load, {LOADED} ranks: DCP", store_ranks.load_dcp, LOADED, where, cache=cache)
            shutil.rmtree(where)
        plan, target = growth.identity(self.arch), self.folder / "rewritten"
        yield self._row("make layout-free: ours", "warm", partial(self._grow, plan, target), written=target)
        if "deepspeed" not in skip:
            where = self.folder / "zero"
            yield self._ranks(f"save, {SAVED} ranks: DeepSpeed", store_ranks.save_zero, SAVED, where, fresh=where)
            yield self._universal(where)

    def _growths(self) -> list[tuple[str, dict[str, int], dict[str, Any]]]:
        s = self.arch.sizes
        wide = {"hidden": s["hidden"] * 3 // 2, "ffn": s["ffn"] * 3 // 2}
        wide |= {"heads": s["heads"] * 3 // 2, "kv_heads": s["kv_heads"] * 3 // 2}
        return [
            ("depth x2 (stack)", {"layers": 2 * s["layers"]}, {"layers": "stack"}),
            ("width x1.5 (zero)", wide, {}),
        ]

    def _state(self) -> dict[str, list[tuple[str, Box, torch.Tensor]]]:
        shapes = {name: Box.whole(t.shape) for name, t in self.arch.tensors().items()}
        return {
            kind: [(name, box, store_ranks.content(kind, name, box)) for name, box in shapes.items()] for kind in KINDS
        }

    def _save(self, state: dict[str, list[tuple[str, Box, torch.Tensor]]]) -> None:
        with Checkpointer(self.root) as checkpointer:
            checkpointer.save(store_ranks.STEP, state, store_ranks.fields(self.arch))

    def _load(self, state: dict[str, list[tuple[str, Box, torch.Tensor]]]) -> None:
        with Reader(self.path) as reader:
            for kind, boxes in state.items():
                for name, box, out in boxes:
                    reader.read(kind, name, box, out)

    def _grow(self, plan: Plan, target: Path, processes: int = 1) -> None:
        with Reader(self.path) as reader:
            write_checkpoint(
                target,
                0,
                list(KINDS),
                lambda kind, name, box: plan.evaluate(name, box, reader.read, kind),
                store_ranks.fields(plan.new),
                {"plan": plan.to_json()},
                processes,
            )

    def _part(self) -> dict[str, Any]:
        """One eighth of the rows of every tensor."""
        boxes = {}
        for name, tensor in self.arch.tensors().items():
            rows = max(1, tensor.shape[0] // 8)
            boxes[name] = Box((3 * rows, *(0 for _ in tensor.shape[1:])), (4 * rows, *tensor.shape[1:]))
        _forget(self.path)
        with Reader(self.path) as reader:

            def read() -> None:
                for kind in KINDS:
                    for name, box in boxes.items():
                        reader.read(kind, name, box)

            cost = Cost.of(read)
            size = 12 * sum(b.numel for b in boxes.values())
            more = (reader.bytes_read - size) / (BLOCK * len(boxes) * len(KINDS))
        return {
            "operation": f"load 1/8 of all rows (+ {more:.2f} blocks a box)",
            "cache": "cold",
            "MiB": size / MIB,
            "seconds": cost.seconds,
            "read_MiB": cost.read / MIB,
            "disk_MiB": cost.disk / MIB,
            "peak_MiB": cost.peak / MIB,
        }

    def _row(
        self,
        name: str,
        cache: str,
        work: Callable[[], object],
        fresh: Path | None = None,
        written: Path | None = None,
    ) -> dict[str, Any]:
        """One process; `fresh` is removed before each round, `written` after it and gives the bytes of the copy."""
        return self._measured(name, cache, lambda: Cost.of(work), self.path, fresh, written)

    def _ranks(
        self,
        name: str,
        work: Callable[..., Callable[[], object]],
        world: int,
        where: Path,
        fresh: Path | None = None,
        cache: str = "-",
    ) -> dict[str, Any]:
        return self._measured(name, cache, lambda: together(world, work, where, self.arch), where, fresh)

    def _measured(
        self,
        name: str,
        cache: str,
        measure: Callable[[], Cost],
        read: Path,
        fresh: Path | None,
        written: Path | None = None,
    ) -> dict[str, Any]:
        """read: what is out of the cache where it is cold, and is copied unless something is `written`."""
        costs, ratios, size = [], [], 0
        for _ in range(self.rounds):
            if fresh and fresh.exists():
                shutil.rmtree(fresh)
            if cache == "cold":
                _forget(read)
            costs.append(measure())
            copied, size = self._copy(written or read, cold=cache == "cold")
            ratios.append(copied / costs[-1].seconds)
            if written:
                shutil.rmtree(written)
        return _figures(name, cache, size, costs, ratios)

    def _universal(self, zero: Path) -> dict[str, Any]:
        """DeepSpeed's conversion of its ZeRO checkpoint to one without a layout."""
        target = self.folder / "universal"
        command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
        command += ["--input_folder", str(zero / "zero"), "--output_folder", str(target)]
        command += ["--num_extract_workers", "1", "--num_merge_workers", "1"]
        cost = command_cost(command, {"DS_ACCELERATOR": "cpu"})
        copied, size = self._copy(target)
        shutil.rmtree(target)
        return _figures("make layout-free: ds_to_universal", "warm", size, [cost], [copied / cost.seconds])

    def _copy(self, source: Path, cold: bool = False) -> tuple[float, int]:
        """(seconds, bytes) of cp + fsync."""
        target = self.folder / "copy"
        files = [p for p in source.rglob("*") if p.is_file()]
        if cold:
            _forget(source)

        def work() -> None:
            subprocess.run(["cp", "-r", source, target], check=True)
            for copied in [p for p in target.rglob("*") if p.is_file()]:
                with open(copied, "rb") as file:
                    os.fsync(file.fileno())

        seconds = Cost.of(work).seconds
        shutil.rmtree(target)
        return seconds, sum(p.stat().st_size for p in files)


def _forget(folder: Path) -> None:
    """Ask the kernel to drop the files of a folder from its cache; they must be on the disk already."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _figures(name: str, cache: str, size: int, costs: list[Cost], ratios: list[float]) -> dict[str, Any]:
    return {
        "operation": name,
        "cache": cache,
        "MiB": size / MIB,
        "seconds": spread([c.seconds for c in costs])[0],
        "x_cp": round(spread(ratios)[0], 2),
        "read_MiB": max(c.read for c in costs) / MIB,
        "disk_MiB": max(c.disk for c in costs) / MIB,
        "peak_MiB": max(c.peak for c in costs) / MIB,
    }
