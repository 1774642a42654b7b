"""GPT-2 and BERT on real ranks: every layout is one process, transformers agrees, growth commutes with sharding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import growth
from growth import Architecture, Box
from pretrain.checkpoint import KINDS, Reader
from pretrain.families.parameters import parameters
from pretrain.layout import fragments
from tests.distributed import ranks
from tests.distributed.harness import run
from tests.distributed.test_growth_on_load import assemble_one, same
from tests.distributed.test_layouts import LAYOUTS, assemble, world

SIZES = {"vocab": 101, "positions": 20, "hidden": 32, "layers": 3, "heads": 4, "head_dim": 8, "ffn": 48}
GPT2 = Architecture("gpt2", SIZES)
BERT = Architecture("bert", {**SIZES, "types": 2, "labels": 2})
FAMILIES = pytest.mark.parametrize("arch", [GPT2, BERT], ids=lambda arch: arch.family)
CHECKED = ["tp2", "tp2-sp", "pp2", "dp2", "pp2-interleaved", "tp2-pp2", "tp2-pp2-dp2"]


@pytest.fixture(scope="module")
def one_process() -> Any:
    """Five steps in one process: {family: (values before, losses, values after)}."""
    cache: dict[str, Any] = {}

    def reference(arch: Architecture) -> Any:
        if arch.family not in cache:
            ((before, losses, after),) = run(1, ranks.initial_and_trained, arch, {}, "fp32", "none", 5)
            cache[arch.family] = assemble(arch, [before]), losses, assemble(arch, [after])
        return cache[arch.family]

    return reference


@FAMILIES
@pytest.mark.parametrize("name", CHECKED)
def test_agrees_with_one_process(arch: Architecture, name: str, one_process: Any) -> None:
    """Bitwise the same initial tensors; losses and gradient norms of five clipped steps to fp32 rounding."""
    how = LAYOUTS[name]
    found = run(world(how), ranks.initial_and_trained, arch, how, "fp32", "none", 5)
    before, losses, after = one_process(arch)
    same(assemble(arch, [r[0] for r in found]), before)
    for _, theirs, _ in found:
        np.testing.assert_allclose(theirs, losses, rtol=1e-5)
    for key, value in assemble(arch, [r[2] for r in found]).items():
        # Adam divides by the root of tiny second moments, which magnifies rounding of the gradients.
        np.testing.assert_allclose(value, after[key], atol=2e-3 if key[0] == "weight" else 1e-5, err_msg=str(key))


@FAMILIES
def test_bf16_agrees_across_layouts(arch: Architecture) -> None:
    """The tied gradient is summed where fp32 accumulation keeps it."""
    one = run(1, ranks.initial_and_trained, arch, {}, "bf16", "none", 5)[0]
    how = LAYOUTS["tp2-pp2-sp"]
    found = run(world(how), ranks.initial_and_trained, arch, how, "bf16", "full", 5)
    np.testing.assert_allclose(found[0][1], one[1], rtol=2e-2)


@FAMILIES
def test_arithmetic_describes_what_was_built(arch: Architecture) -> None:
    """Names, fragments and tensor-parallel marks of the real model are those of the pure arithmetic."""
    how = LAYOUTS["tp2-pp2-dp2"]
    layout = ranks.layout(arch, how)
    for rank, names, mapped, marked in run(world(how), ranks.geometry, arch, how):
        pp_rank, dp_rank, tp_rank = layout.coordinates(rank)
        table = parameters(arch, layout, pp_rank, tp_rank)
        assert names == [p.name for p in table]
        assert marked == [p.dim is not None for p in table]
        assert mapped == [(f.index, f.start, f.numel, f.offset) for f in fragments(table, layout.dp, dp_rank)]


@FAMILIES
def test_growth_commutes_with_sharding(arch: Architecture, tmp_path: Path) -> None:
    """Wider, deeper, more vocabulary and positions at once, from TP2 x PP2 x DP2 into TP2 with sequence parallelism."""
    how = LAYOUTS["tp2-pp2-dp2"]
    run(world(how), ranks.trained_and_saved, arch, how, 3, str(tmp_path))
    path = tmp_path / "step-00000000"
    new = arch.replace({"vocab": 203, "positions": 24, "hidden": 64, "layers": 5, "heads": 8, "ffn": 80})
    policy = {**ranks.POLICY, "hidden": "replicate"}
    plan = growth.between(arch, new, policy, seed=11, init_std=0.05)
    with Reader(path) as reader:
        whole = {
            (kind, tensor): plan.evaluate(tensor, Box.whole(shape.shape), reader.read, kind).numpy()
            for kind in KINDS
            for tensor, shape in plan.new.tensors().items()
        }
    found = run(2, ranks.grown, new, LAYOUTS["tp2-sp"], str(path), 2, policy)
    same(assemble(plan.new, [r[0] for r in found]), whole)
    one = run(1, ranks.grown, new, {}, str(path), 2, policy)[0]
    for _, _, losses, _, steps in found:
        np.testing.assert_allclose(losses, one[2], rtol=1e-5)
        assert steps == [5, 2]


@FAMILIES
def test_resume_is_bitwise_and_copies_stay_equal(arch: Architecture, tmp_path: Path) -> None:
    """Six steps equal a resume after the third and three more; both places of the tied embedding hold the same bits."""
    how = LAYOUTS["tp2-pp2-dp2"]
    straight = run(world(how), ranks.trained_through_a_save, arch, how, 3, str(tmp_path))
    resumed = run(world(how), ranks.loaded, arch, how, str(tmp_path / "step-00000000"), 3, None)
    for (losses, values, _), (_, later, final) in zip(straight, resumed, strict=True):
        assert later == losses[3:]
        same(assemble_one(final), assemble_one(values))
    copies = [copy for _, _, copy in straight]
    assert sum(c is not None for c in copies) == world(how)  # with two pipeline ranks each holds one
    for tp_rank in range(2):
        first, *others = [c for r, c in enumerate(copies) if r % 2 == tp_rank]
        assert all(np.array_equal(first, c) for c in others)


@FAMILIES
def test_transformers_agrees(arch: Architecture) -> None:
    """Logits after five steps at TP2 x PP2, on real lengths: transformers' model with the same tensors."""
    how = LAYOUTS["tp2-pp2"]
    found = run(world(how), ranks.trained_logits, arch, how, 5)
    values = assemble(arch, [r[0] for r in found])
    full = {name: torch.from_numpy(v) for (kind, name), v in values.items() if kind == "weight"}
    samples = ranks.batches(arch, 1)[0]
    logits = next(r[1] for r in found if r[1] is not None)
    theirs = transformers_logits(arch, full, samples)
    valid = samples.get("valid", torch.ones_like(samples["inputs"])).bool().numpy()
    assert np.abs(logits - theirs)[valid].max() <= 1e-5 * np.abs(theirs).max()


def transformers_logits(arch: Architecture, tensors: dict[str, torch.Tensor], samples: Any) -> np.ndarray:
    """Of an independent implementation; the names of BERT's tensors are its own."""
    import transformers

    s = arch.sizes
    if arch.family == "gpt2":
        model = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=s["vocab"],
                n_positions=s["positions"],
                n_embd=s["hidden"],
                n_layer=s["layers"],
                n_head=s["heads"],
                n_inner=s["ffn"],
            )
        )
        state = {}
        for name, tensor in tensors.items():
            if ".attn." in name and "c_proj" not in name:
                continue
            turned = tensor.T if tensor.dim() == 2 and "transformer.h." in name else tensor  # its linears are [in, out]
            state[name] = turned
        for i in range(s["layers"]):
            of = f"transformer.h.{i}.attn."
            for part in ("weight", "bias"):
                fused = torch.cat([tensors[f"{of}{x}_proj.{part}"] for x in "qkv"])
                state[f"{of}c_attn.{part}"] = fused.T if fused.dim() == 2 else fused
        state["lm_head.weight"] = tensors["transformer.wte.weight"]
        inputs = {"input_ids": samples["inputs"]}
    else:
        model = transformers.MegatronBertForPreTraining(
            transformers.MegatronBertConfig(
                vocab_size=s["vocab"],
                hidden_size=s["hidden"],
                num_hidden_layers=s["layers"],
                num_attention_heads=s["heads"],
                intermediate_size=s["ffn"],
                max_position_embeddings=s["positions"],
                hidden_act="gelu",
                layer_norm_eps=arch.scalars["norm_eps"],
            )
        )
        state = {**tensors, "cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"]}
        state["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"]
        inputs = {
            "input_ids": samples["inputs"],
            "token_type_ids": samples["types"],
            "attention_mask": samples["valid"].long(),
        }
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all("position_ids" in name or ".attn.bias" in name for name in missing), missing
    with torch.no_grad():
        output = model.eval()(**inputs)
    return (output.logits if arch.family == "gpt2" else output.prediction_logits).numpy()
