"""What came of a study: each curriculum against the target from scratch, and against the best fixed size.

All that is compared has the same seed, since the seed decides which text is held out too: differences are taken run by
run, and then their mean over seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, log, sqrt
from statistics import mean, stdev

from pretrain.errors import UserError
from pretrain.report import comparison
from pretrain.report.comparison import AXES, Line
from pretrain.study.curricula import Entry, Run
from pretrain.study.keys import Study
from pretrain.study.search import best_rate, searched

T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t of a 95 % interval for 1, 2, ... degrees of freedom."""


@dataclass(frozen=True)
class Mean:
    """A mean over seeds, with half of its 95 % interval (Student's t), which one seed does not have."""

    value: float
    half: float | None = None

    @staticmethod
    def of(values: Sequence[float]) -> Mean | None:
        """Of these values, one a seed; None without any."""
        if not values:
            return None
        count = len(values)
        t = T_95[min(count - 1, len(T_95)) - 1]
        return Mean(mean(values), t * stdev(values) / sqrt(count) if count > 1 else None)


@dataclass(frozen=True)
class Frontier:
    """The smallest final losses of models of fixed size, over the FLOPs of their whole training.

    points: (FLOPs, loss, name), by FLOPs; only those that no cheaper one beats.
    """

    points: tuple[tuple[float, float, str], ...]

    @staticmethod
    def of(points: Sequence[tuple[float, float, str]]) -> Frontier:
        kept: list[tuple[float, float, str]] = []
        for point in sorted(points):
            if not kept or point[1] < kept[-1][1]:
                kept.append(point)
        return Frontier(tuple(kept))

    def at(self, flops: float) -> float | None:
        """The loss at these FLOPs, between two points by a straight line over log FLOPs; None outside of them."""
        for (low, before, _), (high, after, _) in zip(self.points, self.points[1:], strict=False):
            if low <= flops <= high:
                return before + (after - before) * log(flops / low) / log(high / low)
        return next((loss for at, loss, _ in self.points if at == flops), None)


@dataclass(frozen=True)
class Spike:
    """What a growth event did to the held-out loss: by how much it rose, over the value before the event, and after how
    many steps it was back (None: not before the next event, or the end)."""

    rise: float
    steps: float | None


def spikes(line: Line, metric: str) -> list[Spike]:
    """The spike of every growth event of a line, as far as the loss was measured around it."""
    found = []
    ends = [mark.record for mark in line.marks] + [len(line.records)]
    for mark, end in zip(line.marks, ends[1:], strict=True):
        before = [r for r in line.records[: mark.record] if isfinite(r.get(metric, float("nan")))]
        after = [r for r in line.records[mark.record : end] if isfinite(r.get(metric, float("nan")))]
        if not before or not after:
            continue
        level = before[-1][metric]
        highest = max(range(len(after)), key=lambda n: after[n][metric])
        rise = after[highest][metric] - level
        if rise <= 0:
            found.append(Spike(0.0, 0.0))
            continue
        back = next((r for r in after[highest:] if r[metric] <= level), None)
        found.append(Spike(rise, back["iterations"] - before[-1]["iterations"] if back else None))
    return found


@dataclass(frozen=True)
class Row:
    """A curriculum at its best rate. Means are over the seeds of which the target from scratch is there too."""

    entry: Entry
    rate: float
    rates: int
    """At how many rates it has ended."""
    edge: bool
    """Whether its best rate is the smallest or the largest of the search."""
    seeds: int
    parameters: tuple[int, ...]
    """Of its stages."""
    used: Mapping[str, float]
    """What the run with the first seed used in all, by axis."""
    end: Mean
    gap_tokens: Mean | None
    """Its final loss less that of the target from scratch, which has as many tokens (of a fixed size: has its own)."""
    gap_target: float | None
    """Its final loss less that of the target from scratch with the same FLOPs; None where there is none."""
    gap_frontier: float | None
    """Likewise, less that of the best fixed size."""
    reach: Mapping[str, Mean] | None
    """What it had used when it first was at the final loss of the target from scratch, by axis; None: a seed never."""
    ratio: Mapping[str, Mean] | None
    """The same as a share of what the target had used by then."""
    spikes: tuple[Spike, ...]
    dead: float | None
    """The largest share of dead parameters, and of copies locked after ten steps, of its certificates."""
    locked: float | None


@dataclass(frozen=True)
class Result:
    """A study as far as it is."""

    metric: str
    target: Entry
    """The target from scratch that all are compared with: the best of its recipes."""
    goal: float
    """Its final loss, with the first seed."""
    rows: tuple[Row, ...]
    frontier: Frontier
    lines: Mapping[str, Line]
    """Of each entry, by name, the line of its best rate with the first seed."""


def losses(lines: Mapping[str, Line], diverged: Sequence[str]) -> dict[str, float]:
    """The final loss of each run that has ended, by name; infinite for one that diverged."""
    found = {name: float("inf") for name in diverged}
    for seed_lines in _by_seed(lines).values():
        metric = comparison.common_metric(list(seed_lines.values()))
        found |= {name: _final(line, metric) for name, line in seed_lines.items()}
    return found


def _by_seed(lines: Mapping[str, Line]) -> dict[int, dict[str, Line]]:
    seeds: dict[int, dict[str, Line]] = {}
    for name, line in lines.items():
        seeds.setdefault(line.stages[0].config["seed"], {})[name] = line
    return seeds


def _final(line: Line, metric: str) -> float:
    measured = [record for record in line.records if metric in record]
    value = measured[-1][metric] if measured else float("nan")
    return value if isfinite(value) else float("inf")


def result(study: Study, entries: Sequence[Entry], lines: Mapping[str, Line], ended: Mapping[str, float]) -> Result:
    """The result of the runs that have ended.

    entries: the study's, variants included. lines: of each run that is done, by name. ended: see `losses`.

    Raises UserError when there is none yet, or no target from scratch.
    """
    first = study.seeds[0]
    rates = {entry.name: best_rate(study, entry, ended) for entry in entries}

    def line(entry: Entry, seed: int) -> Line | None:
        return lines.get(Run(entry, rates[entry.name], seed).name)

    chosen = {entry.name: of for entry in entries if (of := line(entry, first))}
    if not (whole := [e for e in entries if e.target and e.scratch and e.name in chosen]):
        raise UserError(f"{study.folder}: the target from scratch has not ended yet, and all else is compared with it")
    metric = comparison.common_metric(list(chosen.values()))
    target = min(whole, key=lambda entry: _final(chosen[entry.name], metric))
    scratch = [
        (chosen[e.name].records[-1]["flops"], _final(chosen[e.name], metric), e)
        for e in entries
        if e.scratch and e.name in chosen
    ]
    target_arch = chosen[target.name].stages[-1].architecture
    frontier = Frontier.of([(flops, loss, entry.name) for flops, loss, entry in scratch])
    own = Frontier.of(
        [(f, loss, e.name) for f, loss, e in scratch if chosen[e.name].stages[-1].architecture == target_arch]
    )
    rows = []
    for entry in entries:
        if entry.name not in chosen:
            continue
        pairs = [(a, b) for seed in study.seeds if (a := line(entry, seed)) and (b := line(target, seed))]
        rows.append(_row(study, entry, rates[entry.name], ended, metric, pairs, own, frontier))
    goal = _final(chosen[target.name], metric)
    return Result(metric, target, goal, tuple(rows), frontier, chosen)


def _row(
    study: Study,
    entry: Entry,
    rate: float,
    ended: Mapping[str, float],
    metric: str,
    pairs: Sequence[tuple[Line, Line]],
    own: Frontier,
    frontier: Frontier,
) -> Row:
    """pairs: for each seed the line of the entry and that of the target from scratch."""
    line = pairs[0][0]
    flops, end = line.records[-1]["flops"], _final(line, metric)
    compared = [comparison.rows(pair, metric)[0] for pair in pairs]
    reached = all(row["reach"] and row["ratio"] for row in compared)

    def means(key: str) -> dict[str, Mean] | None:
        if not reached:
            return None
        return {x: m for x in AXES if (m := Mean.of([row[key][x] for row in compared]))}

    def beyond(level: float | None) -> float | None:
        return None if level is None else end - level

    certificates = [event.certificate for stage in line.stages for event in stage.events if event.certificate]
    locked = [later for certificate in certificates for _, later in certificate.locked.values()]
    ends = Mean.of([_final(a, metric) for a, _ in pairs])
    assert ends  # the first seed is among them
    tried = [r for r in study.rates if searched(study, entry, r).name in ended]
    return Row(
        entry=entry,
        rate=rate,
        rates=len(tried),
        edge=len(study.rates) > 1 and rate in (min(study.rates), max(study.rates)),
        seeds=len(pairs),
        parameters=tuple(stage.architecture.parameters() for stage in line.stages),
        used={x: line.records[-1][x] for x in AXES},
        end=ends,
        gap_tokens=Mean.of([_final(a, metric) - _final(b, metric) for a, b in pairs]) if entry.target else None,
        gap_target=beyond(own.at(flops)),
        gap_frontier=beyond(frontier.at(flops)),
        reach=means("reach"),
        ratio=means("ratio"),
        spikes=tuple(spikes(line, metric)),
        dead=max((c.dead_share for c in certificates), default=None),
        locked=max(locked, default=None),
    )


def not_shown(study: Study, entries: Sequence[Entry], made: Result, missing: int, diverged: Sequence[str]) -> list[str]:
    """Sentences that say what the study does not show, out of what it is."""
    rows = made.rows
    target = next(row for row in rows if row.entry == made.target)
    size, tokens = target.parameters[-1], study.tokens
    lines = [
        f"One target ({size:,} parameters), one number of tokens ({tokens:,}) and one text: nothing is said of larger "
        "models, longer trainings or other text; in the literature the order of recipes changes with both.",
        "The frontier is made of final losses of whole schedules; between two of them it is a straight line over log "
        "FLOPs, and outside of them nothing is said.",
        "Savings do not count the search of the rate, which all had alike.",
    ]
    if study.search < 1:
        lines.append(
            f"The rates are the best of runs with {study.search:.3g} of the tokens; those of longer runs may be lower."
        )
    single = [row.entry.name for row in rows if row.seeds == 1]
    if single:
        lines.append(f"One seed, so no interval: {', '.join(single)}. Differences among these may be chance.")
    if edges := [row.entry.name for row in rows if row.edge]:
        lines.append(f"The best rate is at an end of the grid, so a better one may lie beyond it: {', '.join(edges)}.")
    if never := [row.entry.name for row in rows if row.reach is None and row.entry.target]:
        lines.append(f"No saving, since they never were at the target's final loss: {', '.join(never)}.")
    if outside := [r.entry.name for r in rows if r.gap_frontier is None]:
        lines.append(f"No size from scratch with fewer and with more FLOPs to compare with: {', '.join(outside)}.")
    if partial := [row.entry.name for row in rows if row.rates < len(study.rates)]:
        lines.append(f"Not at every rate yet: {', '.join(partial)}.")
    if diverged:
        lines.append(f"Diverged: {', '.join(diverged)}.")
    if absent := [entry.name for entry in entries if entry.name not in made.lines]:
        lines.append(f"Not here at all: {', '.join(absent)}.")
    if missing:
        lines.append(f"Not finished: {missing} runs.")
    return lines
