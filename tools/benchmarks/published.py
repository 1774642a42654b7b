"""Published ways to grow a model against the operators here, on one small trained checkpoint.

A LLaMA-2 and a BERT of bytes learn the King James Bible for a moment, in fp32. Each rule is written out in plain torch
as its paper or its code has it, with nothing of `growth` but the reference models that run the result.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from demo_corpus import chapters
from torch import Tensor
from tqdm import tqdm

import growth
from benchmarks import rules, width_rules
from benchmarks.ligo_rule import ligo
from benchmarks.report import Report
from benchmarks.rules import Grown, Weights
from growth import Architecture, Box
from growth.family import GENERAL
from growth.learn import Learner
from pretrain.config.recipes import RECIPES
from pretrain.families.reference import logits, loss
from pretrain.verify import probe

STD, LR, STEPS, BATCH, LENGTH = 0.08, 3e-3, 100, 4, 64
MEASURED = 64  # sequences of held-out text on which error and loss are measured
DRAWS = 16  # of rules that copy at random
LEARNING = 1e-3  # learning rate of maps
_TEXT = 20_000  # the first batch that maps are learned on
AFTER = (0, 1, 10)  # steps of Adam after which dead and locked are counted
SAME = 1e-4  # relative difference below which a channel still is a copy
LLAMA = {"vocab": 256, "hidden": 32, "layers": 4, "heads": 4, "kv_heads": 4, "head_dim": 8, "ffn": 64}
BERT = {k: size for k, size in LLAMA.items() if k != "kv_heads"} | {"positions": 64, "types": 2, "labels": 2}
SIZES = {"llama2": LLAMA, "bert": BERT}  # of the families that the papers grow


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench.py published`."""
    parser.add_argument("--only", default="", help="only the pairs whose name contains this text")


@dataclass(frozen=True)
class Figures:
    """What one rule does. error: largest difference of a logit over the largest logit, fp32; loss: its rise in nats;
    spread: the standard errors of these two where they are means over draws; dead: share of new parameters without
    gradient, and locked: share of copied channels that still are copies, both after 0, 1 and 10 steps of Adam."""

    error: float
    loss: float
    dead: tuple[float, ...]
    locked: tuple[float, ...] | None
    spread: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Pair:
    """A published rule and the operators here that do the same: `policy` for the axes that it grows. Where they copy at
    random, error and loss are means over `draws`. learns: LiGO, whose maps are learned, here and as published, in so
    many steps on the same text; `rule` and `policy` are not used."""

    name: str
    family: str
    rule: Callable[[Architecture, Weights, torch.Generator], Grown]
    policy: Mapping[str, Any]
    draws: int = 1
    learns: int = 0


def _recipe(name: str, *axes: str, layers: int = LLAMA["layers"]) -> dict[str, Any]:
    """The operators that a recipe of `grow.recipe` has for these axes, when it leads to so many layers."""
    keys = RECIPES[name](LLAMA["layers"], layers)
    return {axis: keys[axis] for axis in axes}


LIGO, LEARNED = RECIPES["ligo"](4, 8)["learn"]["steps"], dict.fromkeys(("layers", "hidden", "heads", "ffn"), "dense")
QUIET, WIDE = {"operator": "replicate", "snr_db": None}, ("hidden", "heads", "ffn")
PAIRS = (
    Pair("HyperCloning x2, no noise", "llama2", rules.hyper_cloning, dict.fromkeys(WIDE, QUIET)),
    Pair("HyperCloning x2, 10 dB noise", "llama2", rules.noisy_cloning, dict.fromkeys(WIDE, "replicate")),
    Pair("LLaMA-Pro blocks", "llama2", rules.llama_pro, {"layers": "identity"}),
    Pair("G_stack 4 to 8 layers", "llama2", rules.g_stack, {"layers": "stack"}),
    Pair("zero-padded width, no norm correction", "llama2", rules.zero_padded, {"hidden": "zero"}),
    Pair("block-diagonal width x2", "llama2", rules.block_diagonal, dict.fromkeys(WIDE, "replicate")),
    Pair(
        "layer insertion by clone in BERT",
        "bert",
        rules.bert_clones,
        {"layers": {"operator": "insert", "at": [1, 3, 5, 7], "init": "copy"}},
    ),
    Pair("SwiGLU gate = 0 and down = 0", "llama2", rules.zero_neurons("gate", "down"), {"ffn": "zero"}),
    Pair("SwiGLU down = 0", "llama2", rules.zero_neurons("down"), {"ffn": "zero"}),
    Pair("SwiGLU gate = 0", "llama2", rules.zero_neurons("gate"), {"ffn": "zero"}),
    Pair("SwiGLU up = 0", "llama2", rules.zero_neurons("up"), {"ffn": "zero"}),
    Pair("MIDAS 4 to 6 layers", "llama2", rules.middle_block, _recipe("midas", "layers", layers=6)),
    Pair("MSLT 4 to 6 layers", "llama2", rules.top_layers, _recipe("mslt", "layers", layers=6)),
    Pair("staged training, width x2", "llama2", rules.block_diagonal, _recipe("staged", *WIDE)),
    Pair("LEMON x2 in width and depth", "llama2", width_rules.lemon, _recipe("lemon", *WIDE, "layers", layers=8)),
    Pair("bert2BERT FPI x2", "llama2", width_rules.fpi, _recipe("bert2bert_fpi", *WIDE), DRAWS),
    Pair("LiGO x2 in width and depth", "llama2", rules.g_stack, {}, learns=LIGO),
    Pair("bert2BERT AKI x2", "llama2", width_rules.aki, _recipe("bert2bert_aki", *WIDE), DRAWS),
)


def run(options: argparse.Namespace) -> Report:
    """Both sides of every pair; see the notes of the report for the columns."""
    torch.set_num_threads(1)
    chosen = [pair for pair in PAIRS if options.only in pair.name]
    rows: list[Mapping[str, Any]] = []
    for pair in tqdm(chosen, desc="rules", disable=None, leave=False):
        for who, figures in zip(
            (f"{pair.name}, published", f"  here: {_words(pair.policy or LEARNED)}"), compare(pair), strict=True
        ):
            rows.append(
                {
                    "operator": who,
                    "error": f"{figures.error:.1g}",
                    "loss": f"{figures.loss:+.2f}",
                    "dead": _shares(figures.dead),
                    "locked": _shares(figures.locked),
                }
            )
    settings = {**LLAMA, "text": "King James Bible, bytes", "steps": STEPS, "precision": "fp32"}
    notes = [
        "error: largest difference of a logit over the largest logit, before and after growth; loss: its rise in nats.",
        f"dead: share of new parameters without gradient after {', '.join(map(str, AFTER))} steps of Adam.",
        "locked: share of copied channels that still are copies then.",
    ]
    return Report("Published rules of growth on one small trained model", settings, rows, notes)


def _words(policy: Mapping[str, Any]) -> str:
    named = {
        how if isinstance(how, str) else ", ".join(str(v) for k, v in how.items() if k != "at"): 0
        for how in policy.values()
    }
    return f"{', '.join(policy)}: {'; '.join(named)}"


def _shares(found: tuple[float, ...] | None) -> str | None:
    return " / ".join(f"{share:.2g}" for share in found) if found else None


def compare(pair: Pair) -> tuple[Figures, Figures]:
    """The figures of the published rule, and of the operators here."""
    arch, weights = trained(pair.family)
    if pair.learns:
        learned = ligo(arch, weights, _learning, pair.learns, LEARNING, 2 * arch.layers)
        here = _here(arch, weights, learned.arch, _learned(arch, weights, learned.arch, pair.learns), 0)
        # Both begin with the same copies, which the maps here say nothing of.
        return _figures(arch, weights, [learned]), _figures(arch, weights, [replace(here, copies=learned.copies)])
    theirs = [pair.rule(arch, weights, torch.Generator().manual_seed(draw)) for draw in range(pair.draws)]
    ours = [_here(arch, weights, theirs[0].arch, pair.policy, draw) for draw in range(pair.draws)]
    return _figures(arch, weights, theirs), _figures(arch, weights, ours)


def _learned(arch: Architecture, weights: Weights, wanted: Architecture, steps: int) -> Mapping[str, Any]:
    """The policy that is learned here."""
    new = arch.replace(wanted.sizes)
    learner = Learner(_reader(weights), arch, new, lr=LEARNING)
    for step in range(steps):
        learner.step(lambda read: loss(read, new, _batch(_TEXT + step), torch.float32))  # noqa: B023, called at once
    return learner.policy()


def _learning(arch: Architecture, weights: Weights, step: int) -> Tensor:
    return loss(_reader(weights), arch, _batch(_TEXT + step), torch.float32)


def _here(arch: Architecture, weights: Weights, wanted: Architecture, policy: Mapping[str, Any], seed: int) -> Grown:
    plan = growth.between(arch, arch.replace(wanted.sizes), policy, seed=seed, init_std=STD)
    read = _reader(weights)
    tensors = plan.new.tensors()
    new = {name: plan.evaluate(name, Box.whole(t.shape), read).clone() for name, t in tensors.items()}
    return Grown(plan.new, new, {name: probe.added(plan, t) for name, t in tensors.items()}, probe.copies(plan))


@cache
def _bytes() -> Tensor:
    return torch.tensor(list("\n".join(c["text"] for c in chapters()).encode()), dtype=torch.long)


def _batch(number: int, rows: int = BATCH) -> Tensor:
    """Token ids [rows, LENGTH] from places in the text that follow from the number."""
    text, generator = _bytes(), torch.Generator().manual_seed(number)
    places = torch.randint(0, len(text) - LENGTH, (rows,), generator=generator)
    return torch.stack([text[p : p + LENGTH] for p in places.tolist()])


def _reader(weights: Mapping[str, Tensor]) -> Callable[[str, str, Box], Tensor]:
    return lambda kind, name, box: weights[name][box.slices()]


@cache
def trained(family: str) -> tuple[Architecture, Weights]:
    """A small model of a family after `STEPS` steps."""
    arch = Architecture(family, SIZES[family])
    plan = growth.initial(arch, 0, STD)
    weights = {
        name: plan.evaluate(name, Box.whole(t.shape), _reader({})).requires_grad_()
        for name, t in arch.tensors().items()
    }
    for _ in _steps(arch, weights, LR, STEPS, 0):
        pass
    return arch, {name: w.detach() for name, w in weights.items()}


def _steps(arch: Architecture, weights: Weights, lr: float, count: int, first: int) -> Iterator[Weights]:
    """Steps of Adam in the weights' precision; gives the gradients before each and after the last one."""
    dtype = next(iter(weights.values())).dtype
    optimizer = torch.optim.Adam(list(weights.values()), lr=lr, betas=(0.9, 0.95))
    for number in range(count + 1):
        optimizer.zero_grad()
        loss(_reader(weights), arch, _batch(first + number), dtype).backward()
        yield {name: w.grad for name, w in weights.items() if w.grad is not None}
        if number < count:
            optimizer.step()


@torch.no_grad()
def _change(arch: Architecture, weights: Weights, grown: Grown) -> tuple[float, float]:
    """The error, and the rise of the loss."""
    ids = _batch(-1, MEASURED)
    before, after = logits(_reader(weights), arch, ids), logits(_reader(grown.weights), grown.arch, ids)
    rise = loss(_reader(grown.weights), grown.arch, ids, torch.float32) - loss(
        _reader(weights), arch, ids, torch.float32
    )
    return float((after - before).abs().max() / before.abs().max()), float(rise)


def _figures(arch: Architecture, weights: Weights, draws: list[Grown]) -> Figures:
    changes, grown = torch.tensor([_change(arch, weights, grown) for grown in draws]), draws[0]
    spread = changes.std(dim=0) / len(draws) ** 0.5 if len(draws) > 1 else torch.zeros(2)
    # In double precision: rounding, which Adam magnifies, would part copies that the rule leaves as they are.
    live = {name: w.double().requires_grad_() for name, w in grown.weights.items()}
    dead, locked = [], []
    for number, gradients in enumerate(_steps(grown.arch, live, 1e-3, AFTER[-1], 10_000)):
        if number in AFTER:
            dead.append(_dead(grown, gradients, _batch(10_000 + number)[:, :-1]))
            locked.append(_locked(grown, live, gradients))
    (error, rise), (of_error, of_rise) = changes.mean(dim=0).tolist(), spread.tolist()
    return Figures(error, rise, tuple(dead), tuple(locked) if any(grown.copies.values()) else None, (of_error, of_rise))


def _dead(grown: Grown, gradients: Weights, inputs: Tensor) -> float:
    """Rows of the embedding that the batch does not reach do not count, nor biases of keys: softmax never sees them."""
    dead = counted = 0
    for name, new in grown.added.items():
        dims = grown.arch.tensor(name).spec.dims
        if len(dims) == 1 and dims[0].role == "key":
            continue
        new = new.clone()
        if dims[0].role == "read" and dims[0].axes[0] == "vocab":
            new &= torch.zeros(len(new), dtype=torch.bool).index_fill(0, inputs.unique(), True)[:, None]
        dead += int((new & (gradients[name] == 0)).sum())
        counted += int(new.sum())
    return dead / counted


def _locked(grown: Grown, weights: Weights, gradients: Weights) -> float:
    """Over all axes: copied channels whose writing weights and gradients are those of the channel that they copy, as
    they are or with what they read exchanged for its copies (two models side by side)."""
    still = total = 0
    for axis, pairs in grown.copies.items():
        new, old = (torch.tensor(side) for side in zip(*pairs, strict=True))
        differs = torch.zeros(2, len(pairs), dtype=torch.bool)
        for name, t in grown.arch.tensors().items():
            for d, dim in enumerate(t.spec.dims):
                if axis in dim.axes and GENERAL[dim.role] == "write":
                    split = [grown.arch.sizes[a] for a in dim.axes]
                    for values in (weights[name].detach(), gradients[name]):
                        for way, theirs in enumerate((values, _exchanged(grown, name, values, d))):
                            mine, copied = (
                                x.unflatten(d, split).movedim(d + dim.axes.index(axis), 0).flatten(1)
                                for x in (values, theirs)
                            )
                            differs[way] |= (mine[new] - copied[old]).norm(dim=1) > SAME * mine[old].norm(dim=1)
        still += int((~differs).any(dim=0).sum())
        total += len(pairs)
    return still / max(total, 1)


def _exchanged(grown: Grown, name: str, values: Tensor, but: int) -> Tensor:
    """A tensor with the copies along every dimension but one in each other's places."""
    for d, dim in enumerate(grown.arch.tensor(name).spec.dims):
        if d != but:
            split = [grown.arch.sizes[a] for a in dim.axes]
            parts = values.unflatten(d, split)
            for n, axis in enumerate(dim.axes):
                order = torch.arange(grown.arch.sizes[axis])
                for i, j in grown.copies.get(axis, ()):
                    order[i], order[j] = j, i
                parts = parts.index_select(d + n, order)
            values = parts.flatten(d, d + len(split) - 1)
    return values
