"""Does the best learning rate of a narrow model serve a wide one? The same grid of rates at several widths, with
train.mup and without it, on real text. The narrowest model is the base of muP, so that both are the same there.

OUT gets rates.jsonl, a line for each run, which is not made again; table.md; and rates.png, the loss over the rate. A
run that diverges counts as it ends. As it is, it took 23 minutes of a core that also did other work; what came out is
in configs/study/rates/table.md.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.report import Report
from benchmarks.step import joined
from pretrain.cli.command import positive
from pretrain.errors import UserError
from pretrain.report.files import writing

WIDTHS, RATES = "64,256", "2e-3,4e-3,8e-3,1.6e-2,3.2e-2,6.4e-2"
Key = tuple[int, bool, float]
"""Width, whether with muP, and rate of a run."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench.py rates`."""
    parser.add_argument("--corpus", default="data/kjv", help="a prepared corpus (default: %(default)s)")
    parser.add_argument("--family", default="llama2", help="default: %(default)s")
    parser.add_argument("--widths", default=WIDTHS, help="multiples of 16, the base first (default: %(default)s)")
    parser.add_argument("--rates", default=RATES, help="default: %(default)s")
    parser.add_argument("--vocab", type=positive, default=1024, help="default: %(default)s")
    parser.add_argument("--layers", type=positive, default=2, help="default: %(default)s")
    parser.add_argument("--tokens", type=positive, default=120_000, help="of each run (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/rates"), help="default: %(default)s")


def run(options: argparse.Namespace) -> Report:
    """All runs that are missing. Raises UserError for numbers that are none, and for a corpus that is not there."""
    widths, rates = _numbers("widths", options.widths, int), _numbers("rates", options.rates, float)
    settings = {key: getattr(options, key) for key in ("corpus", "family", "vocab", "layers", "tokens")}
    keys = [(w, mup, rate) for w in widths for mup in (False, True) for rate in rates if w != widths[0] or mup]
    losses = _known(options.out / "rates.jsonl", settings)
    missing = [key for key in keys if key not in losses]
    torch.set_num_threads(1)
    with joined():
        for key in tqdm(missing, desc="runs", disable=None, leave=False):
            losses[key] = _trained(key, settings, widths[0])
            line = {**settings, "width": key[0], "mup": key[1], "rate": key[2], "loss": losses[key]}
            with writing(options.out / "rates.jsonl"), open(options.out / "rates.jsonl", "a") as file:
                file.write(json.dumps(line) + "\n")
    report = _report(losses, keys, settings)
    with writing(options.out / "table.md"):
        (options.out / "table.md").write_text(f"```text\n{report}\n```\n\n![loss over the rate](rates.png)\n")
    _draw(losses, keys, options.out / "rates.png")
    return report


def _numbers(name: str, text: str, kind: type) -> list[Any]:
    try:
        numbers = [kind(float(each)) for each in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) <= 0:
        raise UserError(f"--{name} {text}: give numbers above 0, such as {WIDTHS if name == 'widths' else RATES}")
    return numbers


def _known(path: Path, settings: Mapping[str, Any]) -> dict[Key, float]:
    """The losses of the runs that have been made; UserError where they were made otherwise."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if other := [line for line in lines if any(line[key] != value for key, value in settings.items())]:
        was = ", ".join(f"{key} {other[0][key]}" for key in settings)
        raise UserError(f"{path} is of other runs ({was}): give another --out, or remove it")
    return {(line["width"], line["mup"], line["rate"]): line["loss"] for line in lines}


def _trained(key: Key, settings: Mapping[str, Any], base: int) -> float:
    """The held-out loss at the end of a run, in nats a token; infinite where it is no number."""
    from pretrain.config.curriculum import curriculum_of
    from pretrain.schedule.curve import rates
    from pretrain.stage.apply_schedule import Pacing
    from pretrain.stage.resolved import resolve
    from pretrain.stage.start import start
    from pretrain.stage.validate import Validation

    width, mup, rate = key
    tokens = settings["tokens"]
    train = {"seq_len": 128, "global_batch": 8, "micro_batch": 8, "lr": rate, "tokens": tokens, "warmup": 0.1}
    train |= {"schedule": "linear", "precision": "fp32", "compile": False, "eval_bytes": 1 << 17}
    if mup:
        train["mup"] = {"base_hidden": base}
    model = {"family": settings["family"], "vocab": settings["vocab"], "layers": settings["layers"]}
    model |= {"hidden": width, "heads": width // 16, "ffn": 2 * width, "init_std": 0.08}
    document = {"name": "rates", "output": "nowhere", "data": {"corpus": settings["corpus"], "window": 256}}
    stages = [{"name": "run", "model": model, "train": train, "parallel": {"dp": 1}}]
    curriculum = curriculum_of({**document, "stages": stages}, Path("bench rates"))
    resolved = resolve(curriculum, curriculum.stages[0], 1)
    engine, state = start(resolved)
    state = Pacing.of(curriculum, resolved.stage, state.progress).set(engine, state)
    resolved.feed.seek(state.cursor)
    step = train["seq_len"] * train["global_batch"]
    for done in range(0, tokens, step):
        batch = resolved.batch(done, engine.dp_rank, last=done + step >= tokens)
        engine.train_step(batch.samples, rates(state.births, resolved.stage, done + step))
    loss = Validation(engine, resolved.feed)()["validation_loss"]
    engine.free()
    return loss if math.isfinite(loss) else math.inf


def _report(losses: Mapping[Key, float], keys: Sequence[Key], settings: Mapping[str, Any]) -> Report:
    rows: list[dict[str, Any]] = []
    for width, mup in dict.fromkeys((w, mup) for w, mup, _ in keys):
        each = {rate: losses[w, m, rate] for w, m, rate in keys if (w, m) == (width, mup)}
        best = min(each, key=lambda rate: each[rate])
        cells = {f"{rate:g}": f"{loss:.4f}{' *' if rate == best else '  '}" for rate, loss in each.items()}
        which = "base" if width == keys[0][0] else "muP" if mup else "without"
        rows.append({"width": str(width), "rates": which, **cells, "best": f"{best:g}"})
    notes = ["Held-out loss in nats a token at the end of each run, by peak rate; one seed. *: the best of its width."]
    return Report("The best learning rate by width", settings, rows, notes)


def _draw(losses: Mapping[Key, float], keys: Sequence[Key], path: Path) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    from pretrain.report.plot import COLOURS, STYLE

    base, lines = keys[0][0], dict.fromkeys((w, mup) for w, mup, _ in keys)
    widths = list(dict.fromkeys(width for width, _ in lines))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 4), layout="constrained")
        both = figure.subplots(1, 2, sharey=True)
        for axes, with_mup in zip(both, (False, True), strict=True):
            for width, mup in lines:
                if width != base and mup != with_mup:
                    continue
                points = [(r, losses[w, m, r]) for w, m, r in keys if (w, m) == (width, mup)]
                colour = COLOURS[widths.index(width) % len(COLOURS)]
                axes.plot(*zip(*points, strict=True), marker="o", markersize=4, color=colour, label=f"width {width}")
                axes.plot(*min(points, key=lambda p: p[1]), marker="*", markersize=13, color=colour)
            axes.set_xscale("log")
            ticks = sorted({rate for _, _, rate in keys})
            axes.set_xticks(ticks, [f"{rate:g}" for rate in ticks])
            axes.minorticks_off()
            axes.set_xlabel("peak learning rate")
            axes.set_title("train.mup" if with_mup else "without it", fontsize=10)
        best = min(losses[key] for key in keys)
        both[0].set_ylim(best - 0.05, min(best + 1.5, max(losses[key] for key in keys) + 0.05))
        both[0].set_ylabel("held-out loss, nats a token")
        both[1].legend(frameon=False)
        with writing(path):
            figure.savefig(path, dpi=100)
