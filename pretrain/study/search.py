"""Which runs of a study come next: a search of the rate that is the same for all, variants of the best, more seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pretrain.study.curricula import Entry, Run, variants
from pretrain.study.keys import Study

Losses = Mapping[str, float]
"""The final loss of each run that has ended, by name; infinite for one that diverged."""


@dataclass(frozen=True)
class Phase:
    """Runs of one purpose; what comes after a phase depends on its losses."""

    purpose: str
    runs: tuple[Run, ...]

    def missing(self, losses: Losses) -> list[Run]:
        """The runs that have not ended."""
        return [run for run in self.runs if run.name not in losses]


def phases(study: Study, entries: Sequence[Entry], losses: Losses) -> list[Phase]:
    """The phases as far as they are decided, in order: only the last one may have runs that are missing.

    Every entry, from scratch or grown, is run at every rate with the first seed, and (where the search has a share of
    the tokens only) at its best rate with all of them. The best recipes are then tried with the study's variants, in
    the same way; and of all these the best recipes, and the target from scratch, are run with the other seeds at their
    best rates.
    """
    made = _tried(study, entries, losses, "search of the rate", "all tokens at the best rate")
    if made[-1].missing(losses):
        return made
    if tried := variants(study, ranked(study, entries, losses)[: study.variants.best]):
        made += _tried(study, tried, losses, "variants of the best", "all tokens at their best rate")
        entries = [*entries, *tried]
        if made[-1].missing(losses):
            return made
    if len(study.seeds) > 1:
        chosen = [entry for entry in entries if entry.target and entry.scratch]
        chosen += ranked(study, entries, losses)[: study.best]
        seeds = (Run(e, best_rate(study, e, losses), seed) for e in chosen for seed in study.seeds[1:])
        made.append(Phase("other seeds", tuple(seeds)))
    return made


def _tried(study: Study, entries: Sequence[Entry], losses: Losses, search: str, whole: str) -> list[Phase]:
    """The search of the rate for these entries, and then, if it had a share of the tokens, their whole runs."""
    made = [Phase(search, tuple(searched(study, entry, rate) for entry in entries for rate in study.rates))]
    if study.search < 1 and not made[0].missing(losses):
        made.append(Phase(whole, tuple(compared(study, entry, losses) for entry in entries)))
    return made


def searched(study: Study, entry: Entry, rate: float) -> Run:
    """The run that tries a rate."""
    return Run(entry, rate, study.seeds[0], study.search)


def compared(study: Study, entry: Entry, losses: Losses) -> Run:
    """The run that is compared: with all tokens, at the best rate of the search, with the first seed."""
    return Run(entry, best_rate(study, entry, losses), study.seeds[0])


def best_rate(study: Study, entry: Entry, losses: Losses) -> float:
    """The rate whose run in the search ended with the smallest loss, of those that have ended; else the first."""
    return min(study.rates, key=lambda rate: losses.get(searched(study, entry, rate).name, float("inf")))


def ranked(study: Study, entries: Sequence[Entry], losses: Losses) -> list[Entry]:
    """Of every recipe that grows the best curriculum, the best first, by the runs that are compared."""

    def loss(entry: Entry) -> float:
        return losses.get(compared(study, entry, losses).name, float("inf"))

    best: dict[str, Entry] = {}
    for entry in sorted((e for e in entries if not e.scratch), key=loss):
        best.setdefault(entry.recipe, entry)
    return list(best.values())


def planned(study: Study, entries: Sequence[Entry], flops: Callable[[Entry], float]) -> list[Phase]:
    """All phases before anything has run. The best recipes are not known: the dearest ones, by their FLOPs, stand for
    them."""

    def dear(some: Sequence[Entry]) -> dict[str, float]:
        runs = [(entry, searched(study, entry, rate)) for entry in some for rate in study.rates]
        runs += [(entry, compared(study, entry, {})) for entry in some]
        return {run.name: -flops(entry) for entry, run in runs}

    losses = dear(entries)
    losses |= dear(variants(study, ranked(study, entries, losses)[: study.variants.best]))
    return phases(study, entries, losses)
