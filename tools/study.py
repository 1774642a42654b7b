"""Compares recipes of growth with models from scratch, out of one file: trains what is missing, and says what came out.

Every curriculum (recipes at chosen times of growth, fixed sizes with chosen budgets) is run at every rate of the study
with its first seed (if the study says so with a share of its tokens, and then with all of them at its best rate). The
best recipes, and the target from scratch, are then run with the other seeds at their best rate. OUT gets table.md,
loss.png (over FLOPs, with the frontier of fixed sizes) and saving.png (over the time of growth).

What is done is not done twice, and what was stopped, or killed, goes on from its newest checkpoint. The command may
run several times at once, on one machine or on a shared disk: each takes runs that no other one trains, and waits for
the last ones of a phase, which decide what comes next. With --slurm the runs that are decided are submitted as jobs;
call it again when they have ended. The keys of a study's file are in pretrain/study/keys.py.

examples:
  python tools/study.py configs/study/micro.yaml --plan
  python tools/study.py configs/study/micro.yaml --minutes 60
  python tools/study.py configs/study/124m.yaml --plan --gpu a100-80gb --nodes 8
  python tools/study.py configs/study/10m.yaml --report --out runs/study-10m
"""

import argparse
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from growth.describe import table
from pretrain.cli import command
from pretrain.cli.command import Answer
from pretrain.cli.study_runs import Runs
from pretrain.errors import UserError
from pretrain.estimate import cost
from pretrain.estimate.speed import GPUS
from pretrain.report import study as report
from pretrain.report import study_plot
from pretrain.report.files import writing
from pretrain.report.plot import duration, short
from pretrain.report.study_table import as_json, markdown
from pretrain.runtime.files import Lock, make_folder
from pretrain.study import curricula, keys, search
from pretrain.study.curricula import Entry, Run
from pretrain.study.search import Phase

WAIT = 10.0
"""Seconds after which it looks again whether another process has ended the last runs of a phase."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", type=Path, help="the study, a YAML file")
    parser.add_argument("--plan", action="store_true", help="print the runs and their FLOPs, and run nothing")
    parser.add_argument("--gpu", choices=sorted(GPUS), help="with --plan: hours on this GPU, as tools/plan.py reckons")
    parser.add_argument("--nodes", type=command.positive, help="with --gpu, of 8 GPUs (default: what dp asks for)")
    parser.add_argument("--report", action="store_true", help="write what came of the runs so far, and run nothing")
    parser.add_argument("--minutes", type=command.positive, help="stop after so many; the same command goes on")
    parser.add_argument("--slurm", action="store_true", help="submit the runs as jobs, instead of running them here")
    parser.add_argument("--out", metavar="DIR", type=Path, help="for table and pictures (default: the study's runs)")


def work(options: argparse.Namespace) -> Answer:
    """Raises UserError for a study that is none, and for a run that ends with an error."""
    study = keys.load(options.study)
    entries = curricula.entries(study, options.study)
    runs = Runs(study, options.study)
    if options.plan:
        return _plan(runs, entries, options)
    if options.slurm and not shutil.which("sbatch"):
        raise UserError("--slurm: there is no sbatch on this machine; leave it out, and the runs are made here")
    if not options.report:
        deadline = time.monotonic() + 60 * options.minutes if options.minutes else float("inf")
        make_folder(study.folder)
        if options.slurm:
            with Lock(study.folder / ".lock"):
                _submit(runs, entries)
        else:
            _train(runs, entries, deadline)
    return _report(runs, entries, options.out or study.folder)


def _decided(runs: Runs, entries: Sequence[Entry]) -> list[Phase]:
    """The phases as far as the runs that have ended decide them."""
    while True:
        phases = search.phases(runs.study, entries, _losses(runs))
        known = len(runs.lines) + len(runs.diverged)
        runs.read(run for phase in phases for run in phase.runs)
        if len(runs.lines) + len(runs.diverged) == known:
            return phases


def _losses(runs: Runs) -> dict[str, float]:
    return report.losses(runs.lines, runs.diverged)


def _train(runs: Runs, entries: Sequence[Entry], deadline: float) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's end is one as by Ctrl-C: it saves
    elsewhere: set[str] = set()  # another process of the study trains these
    waits = False
    while missing := _decided(runs, entries)[-1].missing(_losses(runs)):
        run = next((run for run in missing if run.name not in elsewhere), None)
        if not run:
            if not waits:
                print(f"others train the last {len(missing)} of this phase: waits", file=sys.stderr, flush=True)
            waits = True
            if (left := deadline - time.monotonic()) <= 0:
                return
            try:
                time.sleep(min(WAIT, left))
            except KeyboardInterrupt:
                return
            elsewhere.clear()  # one may have ended, or been stopped
            continue
        if not (lock := runs.take(run)):
            elsewhere.add(run.name)
            continue
        waits, begin = False, time.monotonic()
        print(f"{run.name} ({len(missing)} left of this phase)", file=sys.stderr, flush=True)
        with lock:
            ended = runs.train(run, deadline)
        if not ended:
            print(f"{run.name} was stopped; the same command goes on", file=sys.stderr, flush=True)
            return
        print(f"  {duration(time.monotonic() - begin)}", file=sys.stderr, flush=True)


def _submit(runs: Runs, entries: Sequence[Entry]) -> None:
    for run in _decided(runs, entries)[-1].missing(_losses(runs)):
        print(runs.submit(run), file=sys.stderr, flush=True)


def _report(runs: Runs, entries: Sequence[Entry], out: Path) -> Answer:
    phases = _decided(runs, entries)
    ended = _losses(runs)
    every = list(dict.fromkeys([*entries, *(run.entry for phase in phases for run in phase.runs)]))
    missing = sum(len(phase.missing(ended)) for phase in phases)
    try:
        made = report.result(runs.study, every, runs.lines, ended)
    except UserError as error:
        if not missing:
            raise
        return Answer(f"{error}\n{missing} runs are missing", {"rows": [], "missing": missing})
    hidden = report.not_shown(runs.study, every, made, missing, runs.diverged)
    text = markdown(runs.study, phases, made, hidden, spent(runs))
    study_plot.loss_over_flops(made, out / "loss.png")
    study_plot.saving_over_time(made, out / "saving.png")
    with writing(out / "table.md"):
        (out / "table.md").write_text(text, encoding="utf-8")
    return Answer(text.rstrip(), {**as_json(made), "missing": missing, "not_shown": hidden})


def spent(runs: Runs) -> float:
    """Seconds of training and growth of all runs that are done."""
    return sum(line.records[-1]["seconds"] for line in runs.lines.values())


def _plan(runs: Runs, entries: Sequence[Entry], options: argparse.Namespace) -> Answer:
    study = runs.study

    @cache
    def costs(entry: Entry) -> list[cost.Cost]:
        curriculum = runs.curriculum(Run(entry, study.rates[0], study.seeds[0]))
        gpu = GPUS[options.gpu or "a100-80gb"]
        return cost.of_curriculum(curriculum, gpu=gpu, nodes=options.nodes)

    def flops(entry: Entry) -> float:
        return sum(c.flops for c in costs(entry))

    def seconds(entry: Entry) -> float:
        if options.gpu:
            return sum(c.seconds for c in costs(entry))
        return flops(entry) / study.speed if study.speed else float("nan")

    timed = bool(options.gpu or study.speed)
    phases = search.planned(study, entries, flops)
    known = list(dict.fromkeys(run.entry for run in phases[0].runs))
    rows = [["curriculum", "stages", "tokens", "FLOPs", *(["time"] if timed else []), "runs"]]
    for entry in known:
        shapes = " > ".join(f"{c.arch.depth} x {c.arch.sizes['hidden']}" for c in costs(entry))
        tokens = short(sum(c.stage.train.tokens for c in costs(entry)))
        time_cell = [duration(seconds(entry))] if timed else []
        rows.append([entry.name, shapes, tokens, f"{flops(entry):.3g}", *time_cell, str(len(study.rates))])
    totals: list[dict[str, Any]] = []
    for phase in phases:
        of_phase = sum(flops(run.entry) * run.share for run in phase.runs)
        hours = sum(seconds(run.entry) * run.share for run in phase.runs) / 3600
        at_most = "" if phase is phases[0] else "at most "
        totals.append({"purpose": phase.purpose, "runs": len(phase.runs), "flops": of_phase, "hours": hours})
        rows.append(
            [
                phase.purpose,
                "",
                "",
                f"{at_most}{of_phase:.3g}",
                *([f"{hours:.1f} h"] if timed else []),
                str(len(phase.runs)),
            ]
        )
    names = {run.name: run for phase in phases[:1] for run in phase.runs}
    runs.read(iter(names.values()))
    done = sum(runs.state(run) == "done" for run in names.values())
    in_all = f"{sum(t['flops'] for t in totals):.3g} FLOPs"
    if timed:
        in_all += f", {sum(t['hours'] for t in totals):.1f} hours "
        gpus = f"on {costs(known[-1])[-1].layout.world} x {options.gpu}"
        in_all += gpus if options.gpu else f"of one run at {study.speed:.3g} FLOP/s"
    text = (
        f"{table(rows)}\n\nIn all at most {in_all}; {done} runs of the search are done. Which recipes are "
        "best is not known yet: the dearest ones stand for them. Parts at rate 0 count as trained."
    )
    data: dict[str, Any] = {
        "curricula": [
            {"name": e.name, "flops": flops(e), "tokens": sum(c.stage.train.tokens for c in costs(e))} for e in known
        ],
        "phases": totals,
        "done": done,
    }
    return Answer(text, data)


main = partial(command.run, __doc__, arguments, work)

if __name__ == "__main__":
    sys.exit(main())
