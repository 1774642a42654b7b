"""What the optimizer is given: the gradient of the reference model, summed in fp32, and its norm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

import growth
from growth import Architecture, Box
from pretrain.data.samples import part
from pretrain.families.reference import objective
from tests.distributed import ranks
from tests.distributed.harness import run
from tests.distributed.test_families import BERT, GPT2
from tests.distributed.test_layouts import LAYOUTS, world


def reduced(arch: Architecture, how: dict[str, Any], precision: str) -> Any:
    """(boxes of the reduced gradient that this rank would write, its norm) of a step that is then not made, and what
    was left: the largest gradient after it."""
    engine = ranks.engine_for(arch, how, ranks.Numerics(precision))
    ranks.begin(engine)
    found: list[tuple[str, Box, np.ndarray]] = []

    def look(loss: float, norm: float) -> str:
        for owned in engine.owned:
            flat = engine._gradients.partition[owned.offset :][: owned.weight.numel()]
            if owned.parameter.owner:
                found.extend((box.tensor, box.box, box.view(flat).clone().numpy()) for box in owned.boxes)
        return "only looked at"

    (batch,) = ranks.batches(arch, 1)
    result = engine.train_step(part(batch, engine.dp_rank, engine.layout.dp), 1e-2, look)
    left = max(float(engine.gradient(p).abs().max()) for _, p in engine.parameters)
    assert precision == "fp32" or all(p.grad is None for _, p in engine.parameters)
    return found, result.grad_norm, left


def reference(arch: Architecture) -> dict[str, Tensor]:
    """By torch's autograd, in one process, in fp64, on the whole batch at once."""
    plan = growth.initial(arch, 3, 0.05)

    def never(*_: Any) -> Tensor:
        raise AssertionError

    weights = {
        name: plan.evaluate(name, Box.whole(t.shape), never).double().requires_grad_()
        for name, t in arch.tensors().items()
    }
    loss = objective(
        lambda kind, name, box: weights[name][box.slices()], arch, ranks.batches(arch, 1)[0], torch.float64
    )
    return dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))


@pytest.mark.parametrize(
    ("arch", "name", "precision"),
    [
        (GPT2, "tp2-pp2-dp2", "fp32"),  # a tied embedding on both pipeline ranks, norms that tensor parallelism copies
        (BERT, "tp2-pp2", "bf16"),
        (ranks.GQA, "dp3", "bf16"),
        (ranks.GQA, "tp2-sp", "fp32"),
    ],
    ids=lambda x: getattr(x, "family", x),
)
def test_the_gradient_and_its_norm_are_the_reference_models(arch: Architecture, name: str, precision: str) -> None:
    """Each element once, wherever there are copies of it."""
    check_gradient(arch, LAYOUTS[name], precision)


def check_gradient(arch: Architecture, how: dict[str, Any], precision: str) -> None:
    """That the gradient and its norm under a layout are the reference model's."""
    expected = reference(arch)
    found = {key: np.full(x.shape, np.nan) for key, x in expected.items()}
    norms = set()
    for boxes, norm, left in run(world(how), reduced, arch, how, precision):
        norms.add(norm)
        assert left == 0
        for tensor, box, values in boxes:
            assert np.isnan(found[tensor][box.slices()]).all()
            found[tensor][box.slices()] = values
    (norm,) = norms
    whole = torch.linalg.vector_norm(torch.cat([torch.from_numpy(x).flatten() for x in found.values()]))
    assert norm == pytest.approx(float(whole), rel=1e-6)
    # bf16 keeps 8 bits in each of some hundred operations; fp32 of the Megatron model, 24.
    rounding = 1e-5 if precision == "fp32" else 3e-2
    for key, x in expected.items():
        error = float(torch.linalg.vector_norm(torch.from_numpy(found[key]) - x) / norm)
        assert error < rounding, key


def _summed(how: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """This rank's partition of a bf16 model's gradient; and the same of the sum, by torch in fp32, of what each
    backward pass gave on each data-parallel rank."""
    engine = ranks.engine_for(ranks.GQA, how, ranks.Numerics("bf16"))
    ranks.begin(engine)
    sums = {p: torch.zeros(p.shape) for _, p in engine.parameters}
    passes = dict.fromkeys(sums, 0)

    def add(p: torch.nn.Parameter, grad: Tensor) -> None:
        assert grad.dtype == torch.bfloat16
        sums[p] += grad.float()
        passes[p] += 1

    for p in sums:
        p.register_hook(lambda grad, p=p: add(p, grad))
    (batch,) = ranks.batches(ranks.GQA, 1)
    engine.backward(part(batch, engine.dp_rank, engine.layout.dp))
    assert set(passes.values()) == {ranks.GLOBAL_BATCH // ranks.MICRO_BATCH // engine.layout.dp}
    assert all(torch.equal(engine.gradient(p), x) for p, x in sums.items())
    flat = torch.cat([x.flatten() for x in sums.values()])
    size = len(engine._gradients.partition)
    flat = torch.nn.functional.pad(flat, (0, size * engine.layout.dp - len(flat)))
    dist.all_reduce(flat, group=parallel_state.get_data_parallel_group())
    return engine._gradients.reduce().numpy(), flat[size * engine.dp_rank :][:size].numpy()


def test_bf16_gradients_are_added_up_in_fp32() -> None:
    """Bit for bit, over the micro-batches and over the ranks (of two, whose sum has but one order)."""
    for reduced, expected in run(2, _summed, {"dp": 2}):
        assert np.array_equal(reduced, expected)
        assert np.abs(expected).max() > 0
