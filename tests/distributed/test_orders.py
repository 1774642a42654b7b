"""Layers that a curriculum makes unlike, on real ranks and through stages: sublayers in another order, and shared ones
that are untied."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import growth
from growth import Architecture, Box
from pretrain.checkpoint import KINDS, Reader
from pretrain.config import Model
from tests.distributed import ranks
from tests.distributed.harness import run
from tests.distributed.test_growth_on_load import assemble_one, same
from tests.distributed.test_layouts import assemble
from tests.distributed.test_stage import curriculum, stage
from tools import show, verify

SHARED = Model(vocab=101, hidden=32, layers=4, heads=4, ffn=48, positions=16, family="gpt2", share=2)
ORDER = Model(**{**vars(SHARED), "layers": 3, "share": 1, "family": "bert", "order": {"sandwich": 1}})
WIDER: dict[str, Any] = {"vocab": 120, "hidden": 48, "heads": 6, "ffn": 64}
GROUP: list[dict[str, Any]] = [
    {"pp": 2, "dp": 2, "pipeline": "uneven"},
    {"tp": 2, "pp": 2, "sequence_parallel": True},
]
"""Layouts of four ranks; uneven: the first has one block."""
MORE: list[dict[str, Any]] = [{"tp": 2, "dp": 2, "sequence_parallel": True}, {"pp": 4}]


def one_after_another(old: Architecture, new: Architecture, hows: list[dict[str, Any]], root: str) -> Any:
    """For each layout: six steps from nothing, with a checkpoint between; the last three of them again, from there; and
    two steps of the model that grows out of that checkpoint."""
    found = []
    for number, how in enumerate(hows):
        folder, path = f"{root}/{number}", f"{root}/{number}/step-00000000"
        small, large = (how | ({"pipeline": [1, arch.depth - 1]} if "pipeline" in how else {}) for arch in (old, new))
        engine, data = ranks.engine_for(old, small), ranks.batches(old, 6)
        state = ranks.begin(engine)
        before, losses = ranks.collected(engine), ranks.train(engine, data[:3])
        ranks.save(engine, state, folder)
        straight = before, losses + ranks.train(engine, data[3:]), ranks.collected(engine)
        found.append((straight, ranks.loaded(old, small, path, 3, None), ranks.grown(new, large, path, 2)))
    return found


@pytest.mark.parametrize("group", [GROUP, pytest.param(MORE, marks=pytest.mark.long)], ids=["layouts", "more"])
@pytest.mark.parametrize(
    ("model", "grown"),
    [(SHARED, replace(SHARED, **WIDER, share=1)), (ORDER, replace(ORDER, **WIDER, layers=4, order={"sandwich": 2}))],
    ids=["share", "order"],
)
def test_every_layout_is_one_process(model: Model, grown: Model, group: list[dict[str, Any]], tmp_path: Path) -> None:
    """Losses and values to rounding; a resume bit for bit; and growing shards is sharding what has grown."""
    old, new = model.architecture(), grown.architecture()
    (((one, _, (_, _, losses_of_grown, _, _)),),) = run(1, one_after_another, old, new, [{}], str(tmp_path / "one"))
    by_rank = run(4, one_after_another, old, new, group, str(tmp_path / "four"))
    for number, how in enumerate(group):
        straight, resumed, after = zip(*(found[number] for found in by_rank), strict=True)
        same(assemble(old, [before for before, _, _ in straight]), assemble(old, [one[0]]))
        trained, expected = assemble(old, [last for _, _, last in straight]), assemble(old, [one[2]])
        for key, value in expected.items():
            np.testing.assert_allclose(trained[key], value, atol=2e-3 if key[0] == "weight" else 1e-5, err_msg=str(key))
        for (_, steps, last), (_, later, final) in zip(straight, resumed, strict=True):
            np.testing.assert_allclose(steps, one[1], rtol=1e-5, err_msg=str(how))
            assert later == steps[3:]
            same(assemble_one(final), assemble_one(last))
        plan = growth.between(old, new, ranks.POLICY, seed=11, init_std=0.05)
        with Reader(tmp_path / f"four/{number}/step-00000000") as reader:
            whole = {
                (kind, name): plan.evaluate(name, Box.whole(tensor.shape), reader.read, kind).numpy()
                for kind in KINDS
                for name, tensor in plan.new.tensors().items()
            }
        same(assemble(plan.new, [before for before, *_ in after]), whole)
        for _, _, steps, _, _ in after:
            np.testing.assert_allclose(steps, losses_of_grown, rtol=1e-5)


MODEL = {"vocab": 350, "hidden": 32, "layers": 4, "heads": 4, "ffn": 64}
STAGES: dict[str, tuple[str, list[dict[str, Any]], dict[str, Any], str]] = {
    # A group of which one block is on the first of two pipeline ranks.
    "share": ("gpt2", [{"share": 4}, {"share": 2}], {"pp": 2, "pipeline": [1, 3]}, "layers 0 x 2, 1 x 2"),
    "order": ("llama2", [{"layers": 2}, {"layers": 3, "hidden": 48, "head_dim": 8}], {"tp": 2}, "ssfsff"),
}


@pytest.mark.parametrize("name", STAGES)
def test_stages(name: str, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From stage to stage the function stays: shared layers are untied, an order grows by kind; and the tools know of
    such blocks."""
    family, shapes, parallel, words = STAGES[name]
    order = {"order": {"sandwich": 1}} if name == "order" else {}
    stages = [
        {"name": f"{number}", "model": {**MODEL, "family": family, **order, **shape}, "parallel": parallel}
        for number, shape in enumerate(shapes)
    ]
    path = curriculum(corpus, tmp_path, stages=stages)
    for number in ("0", "1"):
        assert set(run(2, stage, str(path), number, ["--train.tokens", "512"])) == {""}
    event = json.loads((tmp_path / "run/1/events/step-00000000.json").read_text())
    assert event["plan"]["steps"][0]["operators"][0] == f"layers: {'untie' if name == 'share' else 'identity'}"
    assert event["certificate"]["claims"]
    assert event["certificate"]["error"] <= 1e-5
    assert show.main([str(tmp_path / "run/1")]) == 0
    assert words in capsys.readouterr().out
    assert verify.main([str(tmp_path / "run/1"), "--parent", str(tmp_path / "run/0")]) == 0
