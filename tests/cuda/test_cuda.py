"""What only a GPU can say: that its kernels are right, that a resume is bitwise, that memory is given back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cuda.devices import both, on

pytestmark = pytest.mark.cuda
FAMILIES = pytest.mark.parametrize("family", ["llama2", "gpt2", "bert", "qwen3_tied", "transformer_xl"])


def same(one: Any, other: Any) -> None:
    """The same boxes with the same bits."""
    assert [x[:3] for x in one] == [x[:3] for x in other]
    for (kind, name, box, a), (*_, b) in zip(one, other, strict=True):
        assert np.array_equal(a, b), f"{kind} {name} {box}"


def close(one: Any, other: Any, tolerance: dict[str, float]) -> None:
    assert [x[:3] for x in one] == [x[:3] for x in other]
    for (kind, name, box, a), (*_, b) in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance[kind], err_msg=f"{kind} {name} {box}")


def agree(one: Any, other: Any, precision: str) -> None:
    """Losses and gradient norms of some steps but for rounding: bf16 keeps eight bits of each activation, and fewer of
    gradients, which are differences."""
    loss, norm = {"fp32": (1e-4, 1e-4), "bf16": (1e-2, 5e-2)}[precision]
    np.testing.assert_allclose([a for a, _ in one], [a for a, _ in other], rtol=loss)
    np.testing.assert_allclose([b for _, b in one], [b for _, b in other], rtol=norm)


# Adam divides by the root of tiny second moments, which magnifies rounding of the gradients.
FP32 = {"weight": 2e-3, "exp_avg": 1e-4, "exp_avg_sq": 1e-5}


@FAMILIES
def test_steps_in_fp32(family: str) -> None:
    """The drawn model bit for bit; losses and gradient norms of three steps as the CPU's."""
    cuda, cpu = both("steps", family, "fp32")
    same(cuda[0], cpu[0])
    agree(cuda[1], cpu[1], "fp32")
    close(cuda[2], cpu[2], FP32)


@FAMILIES
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_steps_in_bf16(family: str, recompute: str) -> None:
    cuda, cpu = both("steps", family, "bf16", recompute)
    same(cuda[0], cpu[0])
    agree(cuda[1], cpu[1], "bf16")


@FAMILIES
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_against_eager(family: str, precision: str) -> None:
    compiled, eager = (on("cuda", "steps", family, precision, "none", how)[1] for how in (True, False))
    agree(compiled, eager, precision)


@FAMILIES
def test_saved_on_one_and_loaded_on_the_other(family: str, tmp_path: Path) -> None:
    """The values bit for bit, either way; the losses after it as the CPU's."""
    values = on("cuda", "saved", family, str(tmp_path / "cuda"))
    mine, its = both("loaded", family, str(tmp_path / "cuda"))
    same(mine[0], values)
    same(its[0], values)
    agree(mine[1], its[1], "fp32")
    values = on("cpu", "saved", family, str(tmp_path / "cpu"))
    same(on("cuda", "loaded", family, str(tmp_path / "cpu"))[0], values)


@FAMILIES
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resume_is_bitwise(family: str, precision: str, tmp_path: Path) -> None:
    """Under train.deterministic: six steps are three, a stop, and three more; and so are they the second time."""
    straight, stopped = on("deterministic", "resumed", family, precision, str(tmp_path))
    assert straight[0] == stopped[0]
    same(straight[1], stopped[1])


@FAMILIES
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_growth_on_load(family: str, precision: str, tmp_path: Path) -> None:
    """The grown model bit for bit; its certificate, and steps of two generations at two rates, as the CPU's."""
    on("cpu", "saved", family, str(tmp_path))
    (certificate, values, losses, steps), (its, its_values, its_losses, its_steps) = both(
        "grown", family, str(tmp_path), precision
    )
    same(values, its_values)
    assert certificate["claims"] == (family != "bert")  # its norms are after the residual
    assert certificate["error"] <= certificate["tolerance"] or not certificate["claims"]
    if precision == "fp32":  # small gradients are none in bf16
        assert certificate["dead"] == its["dead"]
        assert all(dead == 0 for dead, _ in certificate["dead"].values())
    at = [
        [(found[f"loss_{when}"], found[f"grad_norm_{when}"]) for when in ("before", "after")]
        for found in (certificate, its)
    ]
    agree(*at, precision)
    agree(losses, its_losses, precision)
    assert steps == its_steps


@pytest.mark.parametrize("family", ["llama2", "gpt2"])
@pytest.mark.parametrize(("where", "kinds"), [("cuda", {"flash", "cudnn"}), ("deterministic", {"flash"})])
def test_flash_attention_is_taken(where: str, kinds: set[str], family: str) -> None:
    """torch's own, or cuDNN's flash attention, which torch may prefer and which is not deterministic."""
    taken = on(where, "attention", family)
    names = " ".join(taken).lower()
    assert any(kind in names for kind in kinds), taken
    assert not any(kind in names for kind in {"efficient", "math", "cudnn"} - kinds), taken


@pytest.mark.parametrize("family", ["llama2", "gpt2"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_documents_apart(family: str, precision: str) -> None:
    """Losses and gradient norms as the CPU's, which runs documents one by one; in bf16 by the flash kernel."""
    (losses, taken), (its, _) = both("documents_apart", family, precision)
    agree(losses, its, precision)
    if precision == "bf16":
        assert any("_flash_attention_backward" in name for name in taken), taken


@pytest.mark.parametrize("compiled", [True, False])
def test_attention_within_spans(compiled: bool) -> None:
    """Values and gradients, of flex attention's kernel and block by block, as the CPU's."""
    for one, other in zip(*both("span_attention", compiled), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-3 * float(np.abs(other).max()))


@pytest.mark.parametrize("family", ["llama2", "gpt2"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("compiled", [True, False])
def test_heads_with_spans(family: str, precision: str, compiled: bool) -> None:
    (losses, spans), (its, its_spans) = both("spans", family, precision, compiled)
    agree(losses, its, precision)
    np.testing.assert_allclose(spans, its_spans, atol={"fp32": 1e-2, "bf16": 0.5}[precision])


@pytest.mark.parametrize("family", ["bert", "transformer_xl"])
def test_attention_with_a_mask_is_one_kernel(family: str) -> None:
    """Flash attention takes no mask, as BERT's padding has one, and nothing that distances add to scores."""
    taken = on("cuda", "attention", family)
    assert not any("math" in name for name in taken), taken


def test_memory_has_no_holes_of_fixed_size() -> None:
    """The setting of the allocator came in time."""
    assert on("cuda", "expandable_segments")


def test_an_engine_gives_its_memory_back() -> None:
    held, after = on("cuda", "memory_after_free")
    assert after <= held / 2


def test_process_groups_are_made_again() -> None:
    sums, before, after = on("cuda", "groups_made_again")
    assert sums == [1, 1]
    assert before == after
