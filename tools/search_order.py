"""Searches an order of sublayers for a stage: attention (s) and MLPs (f), with as many parameters as it has now.

The supernet of PAR (Mandava et al., 2020) has a slot for each sublayer of the stage, which learns to be s, f or
nothing; pretrain/search/supernet.py says what is as published and what is scaled to the steps here. What it chooses is
stretched to the parameters of the stage. --draws adds orders drawn at random at equal parameters (Press et al., 2019).

They are then trained beside interleaved, sandwich and PAR(5), at equal parameters as near as sublayers allow: from one
seed, on one text, which is that of the stage from its beginning, and measured on held-out text. It is done in one
process, with the reference model, in fp32, without dropout. Stopped and started again, it goes on.

The folder gets order.yaml (a line for `model` of a stage), order.json, table.txt, table.md, and for each seed a picture
of the probabilities over steps.

examples:
  python tools/search_order.py configs/demo.yaml --stage seed --steps 400 --rate 0.1
  python tools/search_order.py my.yaml --seeds 6 --draws 10 --out runs/orders
"""

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from growth import Architecture
from growth.describe import table
from pretrain.cli import command
from pretrain.config import Stage, load, orders
from pretrain.errors import UserError
from pretrain.estimate.flops import training_flops
from pretrain.families.common.text import Feed
from pretrain.families.text import in_tokens, open_feed
from pretrain.report import markdown, probabilities_plot
from pretrain.report.plot import short
from pretrain.runtime.documents import one_line
from pretrain.runtime.files import Lock, make_folder, write_file
from pretrain.search import candidates
from pretrain.search.random_search import draw
from pretrain.search.supernet import NOTHING, RATE, Supernet
from pretrain.search.training import Training, to_the_end
from pretrain.verify import audit

HEADER = ("", "order", "s", "f", "parameters", "FLOPs a token", "held-out loss")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", type=Path, help="the curriculum, a YAML file")
    parser.add_argument("--stage", help="name of the stage (default: the first)")
    parser.add_argument("--out", type=Path, help="the folder to write (default: RUN-order beside the run's folder)")
    parser.add_argument(
        "--steps", type=command.positive, help="of the search, and of each order (default: those of the stage)"
    )
    parser.add_argument(
        "--seeds", type=command.positive, default=1, help="searches (default: %(default)s; published: 6)"
    )
    parser.add_argument("--draws", type=command.positive, default=0, help="random orders (default: none)")
    parser.add_argument(
        "--rate", type=float, default=RATE, help="of the architecture weights; raise it for few steps (default: 0.01)"
    )
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: the first CUDA device, or cpu)")


def work(options: argparse.Namespace) -> command.Answer:
    """Raises UserError and GrowthError for what cannot be searched."""
    if not 0 < options.rate < 1e3:
        raise UserError(f"--rate {options.rate:g}: choose a number above 0, such as {RATE:g}")
    curriculum = load(options.config)
    stage = curriculum.stage(options.stage) if options.stage else curriculum.stages[0]
    arch = stage.model.architecture()
    if missing := [kind for kind in orders.KINDS.values() if kind not in arch.table.kinds]:
        raise UserError(
            f"model.family: {arch.family} has no layers of kind {', '.join(missing)}: choose another family"
        )
    if stage.train.mup.base_hidden:
        raise UserError("train.mup: a search trains all tensors at one rate; give train.lr for this width, without it")
    device = _device(options.device)
    folder = options.out or Path(curriculum.output) / f"{curriculum.name}-order"
    feed = open_feed(stage)
    stage = in_tokens(stage)
    if options.steps:
        stage = _shortened(stage, options.steps)
    about = {
        "config": stage.to_dict(),
        "seeds": options.seeds,
        "draws": options.draws,
        "rate": options.rate,
        "device": device.type,
    }
    make_folder(folder.absolute())
    with Lock(folder / ".lock"):
        answer = folder / "order.json"
        if not answer.exists():
            _write(folder, *_searched(arch, stage, feed, folder, about, device), about)
        data = json.loads(answer.read_text())
        if data["about"] != about:
            raise UserError(f"{folder} holds another search: remove it, or choose another --out")
        text = (folder / "table.txt").read_text()
    line = f"in stage {stage.name!r} of {options.config}:\nmodel:\n  order: {data['order']}"
    return command.Answer(f"{folder}\n{text}{line}", data)


def _searched(
    arch: Architecture, stage: Stage, feed: Feed, folder: Path, about: Mapping[str, Any], device: torch.device
) -> tuple[list[dict[str, Any]], list[str]]:
    """Each order with its name, size and held-out loss, and what each search has chosen."""
    sizes, slots = candidates.sublayer_parameters(arch), arch.branches
    pairs = slots // 2
    usual = orders.sandwich(pairs, 0)
    budget = candidates.total(sizes, usual)
    largest = arch.replace({"layers": slots}, kinds=arch.table.kinds[:1] * slots, calls=tuple(range(slots)))
    if (need := audit.needed(largest)) > (free := audit.free_memory()):
        raise UserError(
            f"the search needs about {need / 1e9:.3g} GB of memory and {free / 1e9:.3g} GB are free: take a larger "
            "machine, or a smaller stage"
        )
    chosen = [
        _chosen(Supernet(arch, slots, stage, stage.seed + i, device, about["rate"]), feed, folder, about, i)
        for i in range(about["seeds"])
    ]
    k = max(1, round(pairs * 6 / 16))
    named = {
        "interleaved": usual,
        f"sandwich({k})": orders.sandwich(pairs, k),
        "PAR(5)": candidates.nearest(sizes, budget, partial(orders.par, p=5)),
    }
    for i, choice in enumerate(chosen):
        order = choice.replace(NOTHING, "")
        if not order:
            raise UserError(f"the search chose nothing in every slot: take another --rate than {about['rate']:g}")
        named[_name("found", i, about["seeds"])] = candidates.nearest(
            sizes, budget, partial(candidates.stretched, order)
        )
    for i in range(about["draws"]):
        named[_name("random", i, about["draws"])] = draw(sizes, budget, stage.seed + i)
    losses: dict[str, float] = {}
    for order in dict.fromkeys(named.values()):
        losses[order] = _trained(candidates.of_order(arch, order), stage, feed, folder, about, device, order)
    rows = []
    for name, order in named.items():
        shape = candidates.of_order(arch, order)
        rows.append(
            {
                "name": name,
                "order": order,
                "parameters": shape.parameters(),
                "flops_per_token": training_flops(shape, stage.train.seq_len),
                "loss": losses[order],
            }
        )
    return rows, chosen


def _chosen(net: Supernet, feed: Feed, folder: Path, about: Mapping[str, Any], number: int) -> str:
    """What the slots are at the end of a search, whose picture it draws."""
    _finish(net, feed, folder / f".search-{number}.progress", about, f"search {number + 1} of {about['seeds']}")
    steps, probabilities = zip(*net.records, strict=True)
    chosen = net.chosen()
    probabilities_plot.draw(
        steps,
        np.stack([p.numpy() for p in probabilities]),
        ("attention", "MLP", "nothing"),
        chosen,
        net.rest,
        f"{chosen} after {net.steps:,} steps",
        folder / f"{_name('probabilities', number, about['seeds'])}.png",
    )
    return chosen


def _trained(
    arch: Architecture,
    stage: Stage,
    feed: Feed,
    folder: Path,
    about: Mapping[str, Any],
    device: torch.device,
    order: str,
) -> float:
    """The held-out loss after training."""
    run = Training(arch, stage, stage.seed, device)
    _finish(run, feed, folder / f".{order}.progress", about, order)
    return run.held_out(feed)


def _finish(run: Training, feed: Feed, path: Path, about: Mapping[str, Any], name: str) -> None:
    """Steps until the run has finished, with a bar on a terminal."""
    with tqdm(total=run.stage.train.steps(), desc=name, disable=not sys.stderr.isatty()) as bar:
        for loss in to_the_end(run, feed, path, about):
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update(run.steps - bar.n)
    print(f"{name}: {run.steps:,} steps", file=sys.stderr, flush=True)


def _write(folder: Path, rows: list[dict[str, Any]], chosen: list[str], about: Mapping[str, Any]) -> None:
    """All files but the pictures, order.json last; what was saved on the way goes."""
    best = min((row for row in rows if row["name"].startswith("found")), key=lambda row: row["loss"])
    cells = [
        [
            row["name"],
            row["order"],
            str(row["order"].count("s")),
            str(row["order"].count("f")),
            f"{row['parameters']:,}",
            short(row["flops_per_token"]),
            f"{row['loss']:.4f}",
        ]
        for row in rows
    ]
    line = f"chosen in the supernet: {', '.join(chosen)} (- is nothing)\n"
    write_file(folder / "table.txt", f"{table([HEADER, *cells])}\n{line}".encode())
    write_file(folder / "table.md", f"{markdown.table(HEADER, cells)}\n".encode())
    write_file(folder / "order.yaml", f"order: {best['order']}\n".encode())
    data = {"order": best["order"], "chosen": chosen, "orders": rows, "about": about}
    write_file(folder / "order.json", (json.dumps(data, indent=1) + "\n").encode())
    for path in folder.glob(".*.progress"):
        path.unlink()


def _shortened(stage: Stage, steps: int) -> Stage:
    """The stage, whose budget is in tokens, with so many steps of the full batch, and a warm-up over the same share."""
    train = stage.train
    tokens = steps * train.global_batch * train.seq_len
    warmup = round(train.warmup_tokens * tokens / train.tokens)
    return replace(stage, train=replace(train, tokens=tokens, epochs=0, warmup_tokens=warmup, ramp_from=0))


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: {one_line(str(error))}") from None


def _name(name: str, number: int, of: int) -> str:
    return name if of == 1 else f"{name}-{number + 1}"


main = partial(command.run, __doc__, arguments, work)

if __name__ == "__main__":
    sys.exit(main())
