"""Runs of Megatron-core that go on here, and ours that go on there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from growth import Architecture, Box
from pretrain.checkpoint import KINDS, find, is_done, step_folder
from pretrain.errors import UserError
from pretrain.megatron_lm.export import export_megatron
from pretrain.megatron_lm.folders import opened
from pretrain.megatron_lm.imports import import_megatron
from tests.distributed import megatron_deepspeed, megatron_lm, ranks
from tests.distributed.harness import run
from tests.distributed.test_families import GPT2
from tests.distributed.test_layouts import LAYOUTS, assemble, world

ARCH = ranks.GQA.replace({"vocab": 102, "layers": 2})
BEFORE, AFTER = 3, 5


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """A run of Megatron-core under TP2, saved after some steps; the losses of the next ones."""
    root = tmp_path_factory.mktemp("megatron")
    losses, other = run(2, megatron_lm.trained_and_saved, ARCH, 2, BEFORE, AFTER, str(root))
    assert losses == other
    return root, losses


def test_a_run_goes_on_here_as_it_does_there(saved: tuple[Path, list[float]], tmp_path: Path) -> None:
    """The next losses are Megatron's own, under another layout: weights, moments and the step came in."""
    root, losses = saved
    imported = import_megatron(root / "torch_dist", tmp_path / "run" / "base")
    assert (imported.step, imported.iteration, imported.moments) == (BEFORE, BEFORE, True)
    assert imported.optimizer["betas"] == megatron_lm.BETAS
    assert is_done(tmp_path / "run" / "base")
    how: dict[str, Any] = {"tp": 2}
    ours = run(2, megatron_lm.imported_and_trained, ARCH, how, str(imported.checkpoint), BEFORE, AFTER)
    np.testing.assert_allclose(ours[0], losses, rtol=0, atol=1e-5)
    manifest = find(tmp_path / "run" / "base" / "checkpoints").manifest
    assert manifest is not None
    assert manifest.events[0]["imported"]["config"]["iteration"] == BEFORE
    assert imported.checkpoint == step_folder(tmp_path / "run" / "base" / "checkpoints", 0)


def test_an_export_is_what_megatron_loads(saved: tuple[Path, list[float]], tmp_path: Path) -> None:
    """Into Megatron-core and back, bit for bit, by its own dist_checkpointing; it trains on as if it had never left."""
    root, losses = saved
    imported = import_megatron(root / "torch_dist", tmp_path / "run" / "base")
    export_megatron(imported.checkpoint, tmp_path / "export")
    there = run(2, megatron_lm.loaded_and_trained, ARCH, 2, str(tmp_path / "export"), BEFORE, AFTER)
    own = run(2, megatron_lm.loaded_and_trained, ARCH, 2, str(root / "torch_dist"), BEFORE, AFTER)
    for (values, again), (expected, _) in zip(there, own, strict=True):
        assert again == losses
        for value, other in zip(values, expected, strict=True):
            for part, same in zip(value, other, strict=True):
                np.testing.assert_array_equal(part, same)
    back = import_megatron(tmp_path / "export", tmp_path / "run" / "again")
    for file in ("weight", "exp_avg", "exp_avg_sq"):
        name = f"{file}-00000.safetensors"
        assert (back.checkpoint / name).read_bytes() == (imported.checkpoint / name).read_bytes()


def test_both_formats_of_one_checkpoint_are_the_same(saved: tuple[Path, list[float]]) -> None:
    root, _ = saved
    one, other = opened(root / "torch_dist"), opened(root / "torch" / f"iter_{BEFORE:07d}")
    assert (one.format, other.format) == ("torch_dist", "torch")
    assert one.step == other.step == BEFORE
    for kind in KINDS:
        for name, tensor in ARCH.tensors().items():
            box = Box.whole(tensor.shape)
            assert torch.equal(one.source.read(kind, name, box), other.source.read(kind, name, box))


@pytest.mark.parametrize(
    ("arch", "name", "half"),
    [(ranks.GQA, "pp2-interleaved", True), (GPT2.replace({"vocab": 102}), "tp2-pp2", False)],
    ids=["llama2-interleaved-half", "gpt2-tied"],
)
def test_a_file_of_each_rank_is_what_the_rank_had(arch: Architecture, name: str, half: bool, tmp_path: Path) -> None:
    """Bit for bit, whatever the split: chunks of an interleaved pipeline, the head's copy of a tied embedding, fp32
    masters beside weights in bf16."""
    how = LAYOUTS[name]
    own = assemble(arch, run(world(how), megatron_lm.save_ranks, arch, how, half, str(tmp_path)))
    checkpoint = opened(tmp_path / "iter_0000002")
    assert checkpoint.step == 2
    for (kind, tensor), value in own.items():
        read = checkpoint.source.read(kind, tensor, Box.whole(value.shape))
        np.testing.assert_array_equal(read.numpy(), value, err_msg=f"{kind} {tensor}")


def test_zero_goes_on_here_as_it_does_there(tmp_path: Path) -> None:
    """Of two groups of parameters, cut over data-parallel ranks in the middle of matrices."""
    losses = run(4, megatron_lm.zero_trained_and_saved, ARCH, 2, 1, BEFORE, AFTER, str(tmp_path / "zero"))[0]
    imported = import_megatron(tmp_path / "zero", tmp_path / "run" / "base")
    assert (imported.format, imported.step, imported.iteration, imported.moments) == ("zero", BEFORE, BEFORE, True)
    how: dict[str, Any] = {"tp": 2}
    ours = run(2, megatron_lm.imported_and_trained, ARCH, how, str(imported.checkpoint), BEFORE, AFTER)
    np.testing.assert_allclose(ours[0], losses, rtol=0, atol=1e-5)
    (tag,) = (path for path in (tmp_path / "zero").iterdir() if path.is_dir())
    assert opened(tag, moments=False).source.kinds == ["weight"]
    (tag / "zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(UserError, match=r"zero_pp_rank_1_mp_rank_00_optim_states\.pt: it is not there"):
        opened(tag)
    (tag / "zero_pp_rank_0_mp_rank_00_model_states.pt").touch()
    with pytest.raises(UserError, match="ZeRO's stage 3"):
        opened(tag)


def test_a_pipeline_module_comes_in(tmp_path: Path) -> None:
    """Its modules are numbered through, and the head has a copy of the embedding; each rank has a part of a tensor."""
    arch = GPT2.replace({"vocab": 102, "layers": 2})
    parts = run(4, megatron_deepspeed.trained_and_saved, arch, 2, str(tmp_path))
    source = opened(tmp_path).source
    layer = "transformer.h.{}."
    names = {
        "tied_modules.embed.word_embeddings.weight": "transformer.wte.weight",
        "tied_modules.embed.position_embeddings.weight": "transformer.wpe.weight",
        **{f"{i}.input_layernorm.bias": layer.format(i) + "ln_1.bias" for i in range(2)},
        **{f"{i}.self_attention.dense.weight": layer.format(i) + "attn.c_proj.weight" for i in range(2)},
        **{f"{i}.mlp.dense_h_to_4h.weight": layer.format(i) + "mlp.c_fc.weight" for i in range(2)},
        "3.weight": "transformer.ln_f.weight",
    }
    values = {**parts[2], **parts[0]}
    for theirs, ours in names.items():
        for kind, value in zip(KINDS, values[theirs], strict=True):
            np.testing.assert_array_equal(source.read(kind, ours, Box.whole(value.shape)).numpy(), value)
    qkv = values["1.self_attention.query_key_value.weight"][1].reshape(4, 3, 8, 32)
    read = source.read("exp_avg", layer.format(1) + "attn.k_proj.weight", Box.whole((32, 32)))
    np.testing.assert_array_equal(read.numpy().reshape(4, 8, 32), qkv[:, 1])
