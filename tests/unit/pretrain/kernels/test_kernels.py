"""The kernels, compiled: what they compute is what torch does operation by operation, in as few passes as they say."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._inductor import config, metrics
from torch._inductor.utils import run_and_get_code

from pretrain.errors import UserError
from pretrain.families.common import linear
from pretrain.kernels import activation, cross_entropy, fused, norm, rotary
from pretrain.kernels.fused import Kernel, kernel

S, B, GROUPS, HEADS, SIZE, WIDTH = 6, 2, 2, 4, 8, 40
EPS = 1e-5
needs_compiler = pytest.mark.skipif(bool(fused.lacking("cpu")), reason=f"NOT TESTED: {fused.lacking('cpu')}")


@pytest.fixture(autouse=True)
def _compiles_here() -> Iterator[None]:
    """Compiled in this process: a pool of others takes longer to start than these kernels to compile."""
    with config.patch(compile_threads=1):
        yield


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _rotary_plain(mixed: Tensor, angles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = mixed.split((mixed.shape[-1] - 2 * SIZE, SIZE, SIZE), -1)

    def rotated(x: Tensor) -> Tensor:
        first, second = x.reshape(*x.shape[:2], -1, SIZE).chunk(2, -1)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        return torch.cat((first, second), -1) * cos + torch.cat((-second, first), -1) * sin

    return rotated(query), rotated(key), value


def _angles() -> Tensor:
    half = torch.arange(S)[:, None, None, None] * torch.logspace(0, -3, SIZE // 2)
    return torch.cat((half, half), -1)


ANGLES = _angles()


def _rms_plain(hidden: Tensor, branch: Tensor | None, gain: Tensor) -> tuple[Tensor, Tensor]:
    hidden = hidden if branch is None else hidden + branch
    return hidden, F.rms_norm(hidden, gain.shape, gain, EPS)


def _layer_plain(
    hidden: Tensor, branch: Tensor | None, branch_bias: Tensor | None, gain: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    hidden = hidden if branch is None else hidden + (branch + branch_bias)
    return hidden, F.layer_norm(hidden, gain.shape, gain, bias, EPS)


def _swiglu_plain(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


def wide(count: int, bare: int = 0) -> list[Tensor]:
    """Activations, and vectors of their width."""
    return [drawn(S, B, WIDTH, seed=n) for n in range(count)] + [drawn(WIDTH, seed=9 + n) for n in range(bare)]


CASES: dict[str, tuple[Callable[..., Any], Callable[..., Any], list[Tensor]]] = {
    "rotary": (
        lambda mixed: rotary.rotated_parts(mixed, *rotary.table(ANGLES, mixed.dtype)),
        partial(_rotary_plain, angles=ANGLES),
        [drawn(S, B, GROUPS, (HEADS // GROUPS + 2) * SIZE)],
    ),
    "swiglu": (activation.swiglu, _swiglu_plain, [drawn(S, B, WIDTH)]),
    "gelu": (activation.bias_gelu, lambda x, bias: F.gelu(x + bias), wide(1, 1)),
    "gelu tanh": (
        partial(activation.bias_gelu, approximate="tanh"),
        lambda x, bias: F.gelu(x + bias, approximate="tanh"),
        wide(1, 1),
    ),
    "relu": (activation.bias_relu, lambda x, bias: F.relu(x + bias), wide(1, 1)),
    "rms norm": (
        lambda hidden, gain: norm.AddRMSNorm.apply(hidden, None, gain, EPS),
        lambda hidden, gain: _rms_plain(hidden, None, gain),
        wide(1, 1),
    ),
    "add, rms norm": (lambda *x: norm.AddRMSNorm.apply(*x, EPS), _rms_plain, wide(2, 1)),
    "layer norm": (
        lambda hidden, *x: norm.AddLayerNorm.apply(hidden, None, None, *x, EPS),
        lambda hidden, *x: _layer_plain(hidden, None, None, *x),
        wide(1, 2),
    ),
    "add, layer norm": (lambda *x: norm.AddLayerNorm.apply(*x, EPS), _layer_plain, wide(2, 3)),
    "add bias": (norm.AddBias.apply, lambda hidden, branch, bias: hidden + (branch + bias), wide(2, 1)),
}


def both_ways(function: Callable[..., Any], inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The outputs, and the gradients of the inputs for drawn gradients of the outputs."""
    inputs = [x.to(dtype, copy=True).requires_grad_() for x in inputs]
    outputs = function(*(x * 1 for x in inputs))  # as between layers: no leaves
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    grads = [drawn(*x.shape, seed=20 + n).to(dtype) for n, x in enumerate(outputs)]
    return [x.detach() for x in outputs] + list(torch.autograd.grad(outputs, inputs, grads))


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@needs_compiler
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, marks=[] if dtype == torch.float32 or name in QUICK else pytest.mark.long)
        for QUICK in [("rotary", "add, rms norm", "gelu")]
        for name in CASES
        for dtype in (torch.float32, torch.bfloat16)
    ],
)
def test_compiled_is_what_torch_computes(name: str, dtype: torch.dtype) -> None:
    """Forward and backward, against torch's own operations in fp64: no further off than a few roundings of the type,
    nor than half as much again as those operations are in it."""
    ours, plain, inputs = CASES[name]
    inputs = [x.to(dtype) for x in inputs]  # the same rounded inputs for the exact result
    exact = both_ways(plain, inputs, torch.float64)
    compiled, eager = both_ways(ours, inputs, dtype), both_ways(plain, inputs, dtype)
    for one, other, wanted in zip(compiled, eager, exact, strict=True):
        assert one.shape == wanted.shape
        assert one.dtype == dtype
        assert error(one, wanted) <= 1.5 * error(other, wanted) + 2 * torch.finfo(dtype).eps


def reference_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("how", ["whole", "in_chunks"])
def test_cross_entropy(how: str, dtype: torch.dtype, alone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradient are torch's; the gradient takes the memory of the logits."""
    monkeypatch.setattr(cross_entropy, "CHUNK", 3 * 17)  # chunks of 3 of 7 tokens
    logits, labels = 4 * drawn(7, 17).to(dtype), torch.arange(7) * 5 % 17
    logits[:, -1] = torch.finfo(dtype).min  # padding
    labels[labels == 16] = 0
    weights = torch.arange(1.0, 8.0)
    exact = logits.double().requires_grad_()
    wanted = reference_loss(exact, labels)
    (wanted * weights).sum().backward()
    own = logits.clone().requires_grad_()
    held = own * 1
    loss = cross_entropy.CrossEntropy.apply(held, labels, alone, getattr(cross_entropy, how))
    (loss * weights).sum().backward()
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=1e-5)
    assert exact.grad is not None
    assert own.grad is not None
    assert error(own.grad, exact.grad) <= 2 * torch.finfo(dtype).eps
    assert not own.grad[:, -1].any()
    assert torch.equal(held.detach(), own.grad)


def test_no_fp32_of_all_logits(alone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under bf16, operation by operation, temporaries are of a chunk."""
    seen: list[int] = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.dtype == torch.float32:
                seen.append(out.untyped_storage().nbytes() // 4)
            return out

    monkeypatch.setattr(cross_entropy, "CHUNK", 100)
    logits = drawn(64, 20).bfloat16().requires_grad_()
    with Sizes():
        loss = cross_entropy.CrossEntropy.apply(logits * 1, torch.zeros(64).long(), alone, cross_entropy.in_chunks)
        loss.sum().backward()
    assert max(seen) == 100


@pytest.fixture
def alone() -> Iterator[Any]:
    """A process group of this process."""
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


PASSES: dict[Kernel, tuple[float, list[Any]]] = {
    rotary.cut_and_rotate: (1.5, [drawn(S, B, GROUPS, 32), drawn(S, 1, 1, 2, 4), drawn(S, 1, 1, 2, 4)]),
    activation.swiglu_forward: (1, wide(1)),
    activation.bias_gelu_backward: (1, [*wide(2), drawn(WIDTH), "tanh"]),
    norm.add_rms_norm: (1.25, [*wide(2), drawn(WIDTH), EPS]),
    norm.rms_norm_backward: (1, [*wide(3), drawn(WIDTH), drawn(S, B, 1).square(), EPS]),
    norm.add_layer_norm: (1, [*wide(2), *(drawn(WIDTH) for _ in range(3)), EPS]),
    norm.layer_norm_backward: (1, [*wide(3), drawn(WIDTH), drawn(S, B, 1), drawn(S, B, 1)]),
    norm.rms_norm_gain: (1, [*wide(2), drawn(S, B, 1).square(), EPS]),
    cross_entropy.gradient: (1, [drawn(6, 32), torch.zeros(6, 1).long(), *(drawn(6, 1) for _ in range(3))]),
}
"""Kernels with their arguments, and inductor's count of bytes over theirs: it takes an element of a rotation and its
partner for two reads, and on a CPU gives an addition before a sum over rows a loop of its own."""


@needs_compiler
@pytest.mark.parametrize("each", PASSES, ids=lambda each: each.name)
def test_one_pass(each: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """By inductor's own count: one kernel, which moves what the kernel says of itself."""
    more, args = PASSES[each]
    monkeypatch.setattr("torch._inductor.compile_fx.inductor_metrics_log.isEnabledFor", lambda level: True)
    torch._dynamo.reset()
    metrics.reset()
    given = [x.clone() if isinstance(x, Tensor) else x for x in args]
    with config.patch(force_disable_caches=True):
        outputs, (code,) = run_and_get_code(torch.compile(each.eager, dynamic=False), *given)
    assert len(re.findall(r"^cpp_fused\w* = ", code, re.MULTILINE)) == 1
    assert metrics.num_bytes_accessed <= more * each.bytes_moved(given, outputs)


@needs_compiler
def test_a_growth_compiles_once_more() -> None:
    """Another shape, as a growth makes it, is compiled at its first step only; asking for a gradient or not is none."""
    from torch._dynamo.utils import counters

    @kernel()
    def scaled(x: Tensor, by: Tensor) -> Tensor:
        return x * by

    counters.clear()
    for width in (8, 12, 16):
        for asks in (False, True):
            for number in range(2):
                x = drawn(3, width, seed=number).requires_grad_(asks)
                assert torch.equal(scaled(x, torch.nn.Parameter(x[0].detach())), x.detach() * x[0].detach())
    assert counters["stats"]["unique_graphs"] == 3


def test_an_observer_is_asked_in_place_of_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []

    def observer(called: Kernel, args: Any) -> Any:
        found = called.eager(*args)
        seen.append((called.name, called.bytes_moved(args, found)))
        return found

    monkeypatch.setattr(fused, "observer", observer)
    assert fused.chosen(True)
    x = torch.ones(3, 8)
    assert torch.equal(activation.swiglu(x), torch.full((3, 4), torch.sigmoid(torch.tensor(1.0)).item()))
    norm.add_bias(x, x, torch.ones(8))
    cross_entropy.gradient(x, torch.zeros(3, 1).long(), *(torch.ones(1, 1).expand(3, 1) for _ in range(3)))
    assert seen == [
        ("swiglu_forward", 4 * (24 + 12)),
        ("add_bias", 4 * (3 * 24 + 8)),
        ("gradient", 4 * (2 * 24 + 3) + 8 * 3),  # in place: read and written; what is expanded is read once
    ]


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Asked for, it is the user's error; as the default on CUDA, a warning. Not asked for on a CPU, nothing."""
    monkeypatch.setenv("PATH", "/nowhere")
    fused.lacking.cache_clear()
    with config.patch({"cpp.cxx": ("no-such-compiler",)}):
        with pytest.raises(UserError, match=r"train.compile.*install a C\+\+ compiler"):
            fused.chosen(True)
        assert not fused.chosen(None)
        assert not fused.chosen(False)
        assert not caplog.records
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        assert not fused.chosen(None)
        assert "install Triton" in caplog.text
    fused.lacking.cache_clear()


@pytest.mark.skipif(not linear.available(), reason="NOT TESTED: a torch without oneDNN, or with CUDA")
@pytest.mark.parametrize("held", [False, True])
def test_linear_on_a_cpu(held: bool) -> None:
    """A product and its gradients, the weight's also where it is added to what is there."""
    x, weight, bias, grad = drawn(S, B, 16), drawn(24, 16, seed=1), drawn(24, seed=2), drawn(S, B, 24, seed=3)
    inputs = [t.clone().requires_grad_() for t in (x, weight, bias)]
    exact = [t.double().requires_grad_() for t in (x, weight, bias)]
    if held:
        inputs[1].grad, exact[1].grad = torch.ones(24, 16), torch.ones(24, 16).double()
    out, wanted = linear._Linear.apply(*inputs), F.linear(*exact)
    out.backward(grad)
    wanted.backward(grad.double())
    assert error(out.detach(), wanted.detach()) < 1e-6
    for one, other in zip(inputs, exact, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert error(one.grad, other.grad) < 1e-6
