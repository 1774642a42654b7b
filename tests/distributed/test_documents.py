"""Documents that do not see each other: every causal family, on every kind of layout, against documents one by one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import growth
from growth import Architecture, Box
from pretrain import config, families
from pretrain.data.documents import apart
from pretrain.data.samples import Samples
from pretrain.engine.megatron import Numerics
from pretrain.estimate.flops import training_flops
from pretrain.families.reference import logits
from pretrain.families.text import open_feed
from pretrain.generate.sampling import Sampling
from pretrain.generate.write import continuation
from pretrain.kernels import fused
from tests.distributed import ranks
from tests.distributed.harness import run
from tests.distributed.test_families import GPT2
from tests.distributed.test_layouts import LAYOUTS
from tests.distributed.test_stage import curriculum, losses, stage, state
from tests.distributed.test_transformer_xl import XL

CAUSAL = {arch.family: arch for arch in (ranks.GQA, GPT2, XL, Architecture("qwen3", ranks.GQA.sizes))}
END = 2
TWO_RANKS = ("tp2", "tp2-sp", "pp2", "pp2-interleaved", "dp2")
WAYS: dict[str, Numerics] = {
    "": Numerics(),
    "selective": Numerics(recompute="selective"),
    "full": Numerics(recompute="full"),
    "kernels": Numerics(compile=True),
    "kernels, selective": Numerics(compile=True, recompute="selective"),
}


def test_these_are_all_causal_families() -> None:
    """But for variants of them, and for those whose units are of several tokens: a check refuses it there."""
    own = {name: family for name, family in families.FAMILIES.items() if not family.variant_of}
    causal = {name for name, family in own.items() if family.text.causal and not family.table.streams}
    assert set(CAUSAL) == causal - {"toy"}


def batch(arch: Architecture) -> Samples:
    """Drawn text whose documents have five tokens in the mean."""
    samples = dict(ranks.batches(arch, 1)[0])
    draw = torch.Generator().manual_seed(5)
    samples["inputs"] = samples["inputs"].masked_fill(torch.rand(samples["inputs"].shape, generator=draw) < 0.2, END)
    return apart(samples, END)


def measured(arch: Architecture, how: dict[str, Any], numerics: Numerics) -> Any:
    """(logits, where they are; loss and gradient norm of a step) of the model that `ranks.begin` draws."""
    fused.observer = lambda kernel, args: kernel.eager(*args)  # the kernels' formulas, without a compiler
    engine = ranks.engine_for(arch, how, numerics)
    ranks.begin(engine)
    said = engine.logits(batch(arch))
    return None if said is None else said.numpy(), *ranks.train(engine, [batch(arch)])[0]


def all_of(arch: Architecture, ways: list[tuple[dict[str, Any], Numerics]]) -> Any:
    return [measured(arch, *way) for way in ways]


@pytest.fixture(scope="module", params=CAUSAL.values(), ids=CAUSAL)
def one_by_one(request: pytest.FixtureRequest) -> tuple[Architecture, np.ndarray, float, float]:
    """An architecture; logits, loss and norm of the gradient of the reference model on each document alone, in double
    precision."""
    arch = request.param
    plan = growth.initial(arch, 3, 0.05)
    weights = {
        name: plan.evaluate(name, Box.whole(t.shape), None).double().requires_grad_()  # type: ignore[arg-type]
        for name, t in arch.tensors().items()
    }
    samples = batch(arch)
    losses: list[Tensor] = []
    rows = []
    for inputs, labels in zip(samples["inputs"], samples["labels"], strict=True):
        row = []
        for start, stop in documents(inputs.tolist()):
            said = logits(lambda kind, name, box: weights[name], arch, inputs[None, start:stop], torch.float64)[0]
            losses.append(cross_entropy(said, labels[start:stop], reduction="sum"))
            row.append(said.detach())
        rows.append(torch.cat(row))
    loss = torch.stack(losses).sum() / samples["labels"].numel()
    gradients = torch.autograd.grad(loss, list(weights.values()))
    return arch, torch.stack(rows).numpy(), loss.item(), torch.stack([g.norm() for g in gradients]).norm().item()


def documents(ids: list[int]) -> Iterator[tuple[int, int]]:
    """Yields where each document begins and ends, in a plain loop."""
    begin = 0
    for at in range(1, len(ids)):
        if ids[at] == END and ids[at - 1] != END:
            yield begin, at
            begin = at
    yield begin, len(ids)


def check(one_by_one: tuple[Architecture, np.ndarray, float, float], found: list[Any]) -> None:
    _, expected, loss, norm = one_by_one
    said = next(each[0] for each in found if each[0] is not None)
    assert np.abs(said - expected).max() <= 1e-6 * np.abs(expected).max()
    for _, theirs, gradient in found:
        assert theirs == pytest.approx(loss, rel=1e-6)
        assert gradient == pytest.approx(norm, rel=1e-5)


def test_equals_documents_one_by_one(one_by_one: Any) -> None:
    """In one process: eager and kernels, recomputed or not."""
    (found,) = run(1, all_of, one_by_one[0], [({}, how) for how in WAYS.values()])
    for each in found:
        check(one_by_one, [each])


def test_under_every_kind_of_layout(one_by_one: Any) -> None:
    ways = [(LAYOUTS[name], Numerics()) for name in TWO_RANKS]
    ways.append((LAYOUTS["tp2-sp"], WAYS["kernels, selective"]))
    for each in zip(*run(2, all_of, one_by_one[0], ways), strict=True):
        check(one_by_one, list(each))


def losses_of_the_rest() -> list[float]:
    """Losses of all documents but the first of each sample, for two texts that differ there, with dropped weights."""
    engine = ranks.engine_for(ranks.GQA, {}, Numerics(attention_dropout=0.4))
    ranks.begin(engine)
    found = []
    for token in (7, 8):
        samples = dict(batch(ranks.GQA))
        first = torch.arange(ranks.SEQ_LEN) < samples["document_starts"][:, 1:2]
        samples |= {"inputs": samples["inputs"].masked_fill(first, token), "mask": (~first).float()}
        found.append(float(engine.backward(samples, key=3).sum()))
        engine.forget()
    return found


def test_dropout_lets_nothing_through() -> None:
    """Where weights are dropped by address, they are of a whole sample, with a mask."""
    ((one, other),) = run(1, losses_of_the_rest)
    assert one == other


def test_a_curriculum(corpus: Path, tmp_path: Path) -> None:
    """Whole documents apart: a resume is bitwise, FLOPs are of the text that was read, and of the positions that no
    document reaches none counts as dead when more of them come."""
    given: dict[str, Any] = {
        "data": {"corpus": str(corpus), "validation_fraction": 0.05, "window": 16}
        | {"packing": "best_fit", "reset_attention": True},
        "model": {"family": "gpt2", "vocab": 350, "hidden": 32, "layers": 1, "heads": 4, "ffn": 64},
        "stages": [
            {"name": "small", "parallel": {"dp": 2}},
            {"name": "large", "parallel": {"tp": 2}, "train": {"seq_len": 320}, "model": {"layers": 2}},
        ],
        "train": {"seq_len": 256, "global_batch": 4, "micro_batch": 2, "lr": 3e-3, "precision": "fp32"}
        | {"tokens": 5 * 4 * 256, "eval_bytes": 4096},
    }
    writing = {"interval": 1, "wandb": False, "samples": {"prompt": "a word", "tokens": 6}}  # which trains no other way
    alone = curriculum(corpus, tmp_path / "alone", **given, log=writing)
    cut = curriculum(corpus, tmp_path / "cut", **given)
    assert run(2, stage, str(alone), "small", []) == ["", ""]
    for stop_after in (3, None):
        assert run(2, stage, str(cut), "small", [], stop_after) == ["", ""]
    one, other = (state(tmp_path / which / "run/small/checkpoints") for which in ("alone", "cut"))
    assert all(np.array_equal(value, other[key]) for key, value in one.items())
    assert losses(tmp_path / "alone/run/small") == losses(tmp_path / "cut/run/small")

    small = config.load(alone).stage("small")
    (said,) = (json.loads(line) for line in (tmp_path / "alone/run/small/samples.jsonl").read_text().splitlines())
    tokenizer = open_feed(small).tokenizer
    ids = [tokenizer.eos, *tokenizer.encode("a word", 350).tolist()]
    how = {"tokens": 6, "how": Sampling(), "seed": said["step"], "ends": {tokenizer.eos}}
    new = continuation(lambda kind, name, box: torch.from_numpy(one[kind, name]), small.architecture(), ids, **how)
    assert said["text"] == tokenizer.decode([*ids[1:], *new])
    train, feed = small.train, open_feed(small)
    feed.seek(None)
    expected, per_step = 0.0, train.global_batch * train.seq_len
    for _ in range(train.steps()):
        taken = feed.take(train.global_batch, 0.0, 0, 1)
        assert taken.labels == int(taken.samples["mask"].sum()) <= per_step
        assert taken.seen is not None
        assert taken.seen < 0.9 * train.seq_len
        expected += per_step * training_flops(small.architecture(), train.seq_len, seen=taken.seen)
    records = [json.loads(line) for line in (tmp_path / "alone/run/small/metrics.jsonl").read_text().splitlines()]
    assert records[-1]["flops"] == pytest.approx(expected)

    assert run(2, stage, str(alone), "large", []) == ["", ""]
    assert "a word" in (tmp_path / "alone/run/large/samples.jsonl").read_text()
    certificate = json.loads((tmp_path / "alone/run/large/events/step-00000000.json").read_text())["certificate"]
    assert certificate["claims"]
    assert certificate["error"] <= 1e-5
    assert certificate["dead_share"] == 0
