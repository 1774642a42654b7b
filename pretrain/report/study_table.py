"""The table of a study, for people and for machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pretrain.report.markdown import table
from pretrain.report.plot import ROWS, duration, short
from pretrain.report.study import Mean, Result, Row
from pretrain.study.keys import Study
from pretrain.study.search import Phase

HEADER = (
    *("curriculum", "rate", "seeds", "parameters", "tokens", "FLOPs", "time", "end", "gap at equal tokens"),
    *("gap at equal FLOPs: target", "best fixed size", "to the target's loss: FLOPs", "tokens", "time"),
    *("FLOPs, ratio", "time, ratio", "spike", "steps", "dead", "locked"),
)


def markdown(study: Study, phases: Sequence[Phase], made: Result, not_shown: Sequence[str], seconds: float) -> str:
    """The table, best curriculum first, what its columns mean, the budget of the search and what is not shown.

    seconds: of training and growth, of all runs that are done.
    """
    rows = sorted(made.rows, key=lambda row: row.end.value)
    name = ROWS[made.metric.removeprefix("validation_")]
    budgets = ", ".join(f"{len(phase.runs)} runs for {phase.purpose}" for phase in phases)
    rates = ", ".join(f"{rate:g}" for rate in study.rates)
    share = f" with {study.search:.3g} of its tokens" if study.search < 1 else ""
    hidden = "\n".join(f"- {line}" for line in not_shown)
    return f"""# {study.name}

{table(HEADER, [_cells(row) for row in rows])}

*end*: {name}, at the end. *gap at equal tokens*: it less that of {made.target.name}, the target from scratch
({made.goal:.4f} with seed {study.seeds[0]}). *gap at equal FLOPs*: less that of the target, and of the best size, that
from scratch has used as many. *to the target's loss*: until it first was where {made.target.name} ended, and as a ratio
to what that had used; FLOPs, tokens and time are of all stages, small models and growth events included. *spike*: the
largest rise of the loss at a growth event, *steps* until it was gone. *dead*, *locked*: of the new parameters and of
copies, by the certificates. Means over seeds, with intervals of 95 %.

The same search for all: the rates {rates}, one run each{share}, with seed {study.seeds[0]}. {budgets};
{duration(seconds)} of training in all.

![loss over FLOPs](loss.png)

![saving over the time of growth](saving.png)

## Not shown

{hidden}
"""


def _cells(row: Row) -> list[str]:
    reach, ratio = row.reach, row.ratio
    spike = max(row.spikes, key=lambda s: s.rise, default=None)
    steps = [s.steps for s in row.spikes]
    gone = "-" if not steps else "not gone" if None in steps else f"{max(s for s in steps if s is not None):,.0f}"
    return [
        row.entry.name,
        f"{row.rate:g}" + (" (edge)" if row.edge else ""),
        str(row.seeds),
        " to ".join(short(n) for n in dict.fromkeys(row.parameters)),
        short(row.used["tokens"]),
        f"{row.used['flops']:.3g}",
        duration(row.used["seconds"]),
        _mean(row.end, ".4f"),
        _mean(row.gap_tokens, "+.4f"),
        *(f"{gap:+.4f}" if gap is not None else "-" for gap in (row.gap_target, row.gap_frontier)),
        *(
            (f"{reach['flops'].value:.3g}", short(reach["tokens"].value), duration(reach["seconds"].value))
            if reach
            else ("never", "-", "-")
        ),
        *((_mean(ratio["flops"], ".2f"), _mean(ratio["seconds"], ".2f")) if ratio else ("-", "-")),
        f"{spike.rise:.4f}" if spike else "-",
        gone,
        *(f"{share:.2%}" if share is not None else "-" for share in (row.dead, row.locked)),
    ]


def _mean(mean: Mean | None, form: str) -> str:
    if mean is None:
        return "-"
    return f"{mean.value:{form}}" + (f" ± {mean.half:{form.removeprefix('+')}}" if mean.half is not None else "")


def as_json(made: Result) -> dict[str, Any]:
    """The result for machines."""
    rows = [
        {**asdict(row), "entry": row.entry.name, "recipe": row.entry.recipe, "until": row.entry.until}
        for row in made.rows
    ]
    return {
        "metric": made.metric,
        "target": made.target.name,
        "goal": made.goal,
        "rows": rows,
        "frontier": made.frontier.points,
    }
