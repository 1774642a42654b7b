"""grow(shard) == shard(grow), bit for bit, on real ranks; and checkpoints that any layout reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import growth
from growth import Box
from pretrain.checkpoint import KINDS, Reader
from tests.distributed import ranks
from tests.distributed.harness import run
from tests.distributed.test_layouts import LAYOUTS, assemble, world


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A checkpoint of three trained steps, written as TP2 x PP2 x DP2, and its full tensors."""
    root, how = tmp_path_factory.mktemp("parent"), LAYOUTS["tp2-pp2-dp2"]
    found = run(world(how), ranks.trained_and_saved, ranks.GQA, how, 3, str(root))
    return root / "step-00000000", assemble(ranks.GQA, [values for _, values in found])


def same(one: dict[Any, np.ndarray], other: dict[Any, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert np.array_equal(value, other[key]), key


@pytest.mark.parametrize("name", ["dp3", "tp2-sp", "pp2-uneven", "tp2-pp2-dp2"])
def test_growth_commutes_with_sharding(name: str, parent: tuple[Path, Any]) -> None:
    """Wider, deeper, more vocabulary at once, into another layout: weights and both moments."""
    path, _ = parent
    plan = growth.between(ranks.GQA, ranks.GROWN, ranks.POLICY, seed=11, init_std=0.05)
    with Reader(path) as reader:
        whole = {
            (kind, tensor): plan.evaluate(tensor, Box.whole(shape.shape), reader.read, kind).numpy()
            for kind in KINDS
            for tensor, shape in plan.new.tensors().items()
        }
    how = dict(LAYOUTS[name]) | ({"pipeline": [2, 3]} if LAYOUTS[name].get("pipeline") else {})
    found = run(world(how), ranks.grown, ranks.GROWN, how, str(path), 2)
    same(assemble(plan.new, [r[0] for r in found]), whole)
    one = run(1, ranks.grown, ranks.GROWN, {}, str(path), 2)[0]
    for _, _, losses, _, steps in found:
        np.testing.assert_allclose(losses, one[2], rtol=1e-5)
        assert steps == [5, 2]  # what was born at the event has its own Adam step


def test_any_layout_reads_any_other(parent: tuple[Path, Any], tmp_path: Path) -> None:
    """TP2 x PP2 x DP2 to DP3 and back: bitwise the same, and the files hold the same."""
    path, full = parent
    three = run(3, ranks.loaded, ranks.GQA, {"dp": 3}, str(path), 3, str(tmp_path / "dp3"))
    same(assemble(ranks.GQA, [r[0] for r in three]), full)
    how = LAYOUTS["tp2-pp2-dp2"]
    back = run(world(how), ranks.loaded, ranks.GQA, how, str(tmp_path / "dp3" / path.name), 3, None)
    same(assemble(ranks.GQA, [r[0] for r in back]), full)


@pytest.mark.parametrize("name", ["dp2", "tp2-pp2"])
def test_resume_is_bitwise(name: str, tmp_path: Path) -> None:
    """Six steps equal three steps, a stop, a resume and three more."""
    how = LAYOUTS[name]
    straight = run(world(how), ranks.trained_and_saved, ranks.GQA, how, 6, str(tmp_path / "straight"))
    run(world(how), ranks.trained_and_saved, ranks.GQA, how, 3, str(tmp_path / "first"))
    resumed = run(world(how), ranks.loaded, ranks.GQA, how, str(tmp_path / "first" / "step-00000000"), 3, None)
    for (losses, values), (_, later, final) in zip(straight, resumed, strict=True):
        assert later == losses[3:]
        same(assemble_one(final), assemble_one(values))


def assemble_one(parts: Any) -> dict[Any, np.ndarray]:
    return {(kind, name, box): values for kind, name, box, values in parts}
