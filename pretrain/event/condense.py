"""Fewer generations: what is old enough learns as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pretrain.schedule.curve import Birth
from pretrain.state import State

KEEP = 2  # the newest generations, which keep their own rates
SETTLED = 0.99  # of exp_avg_sq's bias correction: from here on another Adam step changes an update by less than 1 %


def condensed(state: State, beta2: float) -> State:
    """The state with all generations but the newest two merged into one.

    Its learning rate's factor, position on the curve and weight decay are their means, weighted with the tokens that
    each has been trained on: nothing changes where these are equal. Its Adam step is the least of theirs. A generation
    with so few updates that its bias correction has not settled is kept, and so is all that is younger.
    """
    last = -1
    while last + 1 < len(state.births) - KEEP and 1 - beta2 ** state.births[last + 1].adam_step >= SETTLED:
        last += 1
    if last < 1:
        return state
    merged = _merged(state.births[: last + 1], state.progress.tokens)
    return replace(state, births=(merged, *state.births[last + 1 :]), generations=state.generations.merged(last + 1))


def _merged(births: Sequence[Birth], tokens: int) -> Birth:
    oldest, weights = births[0], [tokens - b.birth_tokens for b in births]
    step = min(b.adam_step for b in births)
    paces = [b.pace.advanced(tokens) for b in births if b.pace]
    if len(paces) < len(births):
        return replace(oldest, adam_step=step)  # grown more than once without training in between
    decays = [p.weight_decay for p in paces]
    own = [d for d in decays if d is not None]
    pace = replace(
        paces[0],
        factor=_mean([p.factor for p in paces], weights),
        position=_mean([p.position for p in paces], weights),
        weight_decay=_mean(own, weights) if len(own) == len(decays) else decays[0],
    )
    return replace(oldest, adam_step=step, pace=pace)


def _mean(values: Sequence[float], weights: Sequence[int]) -> float:
    if len(set(values)) == 1 or not sum(weights):
        return values[0]
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)
