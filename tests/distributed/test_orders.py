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

SHARED = Model(vocab=101, hidden=32, layers=4, heads=4, ffn=48, positions=16, family="gpt2", share=2)
ORDER = Model(**{**vars(SHARED), "layers": 3, "share": 1, "family": "bert", "order": {"sandwich": 1}})
WIDER: dict[str, Any] = {"vocab": 120, "hidden": 48, "heads": 6, "ffn": 64}
GROUP: list[dict[str, Any]] = [
    {"tp": 2, "dp": 2, "sequence_parallel": True},
    {"pp": 2, "dp": 2, "pipeline": "uneven"},
    {"tp": 2, "pp": 2},
]
"""Layouts of four ranks; uneven: the first has one block."""


def one_after_another(old: Architecture, new: Architecture, hows: list[dict[str, Any]], root: str) -> Any:
    """For each layout: six steps from nothing; the last three of them again, from a checkpoint; and two steps of the
    model that grows out of that checkpoint."""
    found = []
    for number, how in enumerate(hows):
        folder, path = f"{root}/{number}", f"{root}/{number}/step-00000000"
        small, large = (how | ({"pipeline": [1, arch.depth - 1]} if "pipeline" in how else {}) for arch in (old, new))
        straight = ranks.initial_and_trained(old, small, "fp32", "none", 6)
        ranks.trained_and_saved(old, small, 3, folder)
        found.append((straight, ranks.loaded(old, small, path, 3, None), ranks.grown(new, large, path, 2)))
    return found


@pytest.mark.parametrize(
    ("model", "grown"),
    [(SHARED, replace(SHARED, **WIDER, share=1)), (ORDER, replace(ORDER, **WIDER, layers=4, order={"sandwich": 2}))],
    ids=["share", "order"],
)
def test_every_layout_is_one_process(model: Model, grown: Model, tmp_path: Path) -> None:
    """Losses and values to rounding; a resume bit for bit; and growing shards is sharding what has grown."""
    old, new = model.architecture(), grown.architecture()
    (((one, _, (_, _, losses_of_grown, _, _)),),) = run(1, one_after_another, old, new, [{}], str(tmp_path / "one"))
    by_rank = run(4, one_after_another, old, new, GROUP, str(tmp_path / "four"))
    for number, how in enumerate(GROUP):
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


def test_shared_layers_are_untied_from_stage_to_stage(corpus: Path, tmp_path: Path) -> None:
    """One layer that is called four times, two that are called twice, four: exact, where a group lies on two pipeline
    ranks too."""
    model = {"family": "gpt2", "vocab": 350, "hidden": 32, "layers": 4, "heads": 4, "ffn": 64}
    stages = [
        {"name": f"share-{k}", "model": {**model, "share": k}, "parallel": {"pp": 2, "pipeline": [1, 3]}}
        for k in (4, 2, 1)
    ]
    path = curriculum(corpus, tmp_path, stages=stages)
    for name in ("share-4", "share-2", "share-1"):
        assert set(run(2, stage, str(path), name, ["--train.tokens", "512"])) == {""}
        if name == "share-4":
            continue
        event = json.loads((tmp_path / f"run/{name}/events/step-00000000.json").read_text())
        assert event["plan"]["steps"][0]["operators"] == ["layers: untie"]
        assert event["certificate"]["claims"]
        assert event["certificate"]["error"] <= 1e-5
