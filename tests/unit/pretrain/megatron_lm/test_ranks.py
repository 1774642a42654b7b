"""Files of Megatron-LM's ranks: whatever the split and the names, the same tensors; what does not fit is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from growth import Architecture, Box
from pretrain.checkpoint import Reader, verify_all
from pretrain.errors import UserError
from pretrain.layout import Layout
from pretrain.megatron_lm.folders import opened
from tests.unit.pretrain.megatron_lm.folders import GPT2, LLAMA2, QWEN2, QWEN3, TIED, Values, drawn, legacy, save_ranks
from tools.import_megatron import main

LAYOUTS = {
    "one": Layout.make(3),
    "tp2": Layout.make(3, tp=2),
    "pp2": Layout.make(3, pp=2, pipeline=[1, 2]),
    "interleaved": Layout.make(3, tp=2, pp=2, pipeline="Et|t|t|L"),
}


def same(arch: Architecture, read: Any, values: Values) -> None:
    for (kind, name), value in values.items():
        if name in arch.tensors():
            shape = arch.tensor(name).shape
            assert torch.equal(read(kind, name, Box.whole(shape)), value[tuple(map(slice, shape))]), (kind, name)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("names", ["core", "legacy"])
@pytest.mark.parametrize("arch", [LLAMA2, GPT2, QWEN2, QWEN3, TIED], ids=lambda arch: arch.family)
def test_every_split_and_spelling_is_one_model(arch: Architecture, names: str, layout: str, tmp_path: Path) -> None:
    values = drawn(arch)
    how: dict[str, Any] = {"named": legacy} if names == "legacy" else {}
    checkpoint = opened(save_ranks(tmp_path / "iter_0000009", arch, LAYOUTS[layout], values, **how))
    assert (checkpoint.source.arch, checkpoint.step, checkpoint.iteration) == (arch, 7, 9)
    same(arch, checkpoint.source.read, values)


def test_the_command_line_makes_a_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All of it, and with the first rows of a padded vocabulary and without moments."""
    values = drawn(LLAMA2)
    save_ranks(tmp_path / "gpt" / "iter_0000009", LLAMA2, LAYOUTS["tp2"], values)
    (tmp_path / "gpt" / "latest_checkpointed_iteration.txt").write_text("9\n")
    whole, small = tmp_path / "run" / "whole", tmp_path / "run" / "small"
    assert main([str(tmp_path / "gpt"), str(whole)]) == 0
    assert main([str(tmp_path / "gpt"), str(small), "--vocab", "20", "--weights-only"]) == 0
    assert main([str(tmp_path / "gpt"), str(whole)]) == 0
    assert "is there already" in capsys.readouterr().out
    for stage, arch, kinds, step in ((whole, LLAMA2, 3, 7), (small, LLAMA2.replace({"vocab": 20}), 1, 0)):
        checkpoint = stage / "checkpoints" / "step-00000000"
        assert verify_all(checkpoint) == []
        with Reader(checkpoint) as reader:
            some = {key: value for key, value in values.items() if kinds == 3 or key[0] == "weight"}
            same(arch, reader.read, some)
            assert reader.has("exp_avg") == (kinds == 3)
            assert reader.manifest.generations["each"][0]["adam_step"] == step


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"num_experts": 8}, "num_experts = 8"),
        ({"swiglu": False, "squared_relu": True}, "no family of Cambium"),
        ({"normalization": "LayerNorm"}, "normalization = 'LayerNorm'"),
        ({"qk_layernorm": True}, "is not there, and the arguments say that it is"),
        ({"rotary_interleaved": True}, "rotary_interleaved = True"),
        ({"rotary_percent": 0.5}, "rotary_percent = 0.5"),
        ({"hidden_size": 16}, r"has shape \(12, 8\), and the arguments say \(12, 16\)"),
        ({"num_layers": 4}, "its ranks have 3 layers, and its arguments say 4"),
        ({"hidden_size": "8"}, "hidden_size = '8' must be there, as whole numbers"),
        ({"padded_vocab_size": None}, "padded_vocab_size = None must be there"),
        (
            {"tensor_model_parallel_size": 4},
            "mp_rank_02/model_optim_rng.pt: it is not there, and there are 4 x 1 ranks",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    changed: dict[str, Any], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_ranks(tmp_path / "iter_0000009", LLAMA2, LAYOUTS["tp2"], drawn(LLAMA2), **changed)
    with pytest.raises(UserError, match=problem):
        opened(folder)
    assert main([str(folder), str(tmp_path / "run" / "base")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    values = drawn(LLAMA2)
    folder = save_ranks(tmp_path / "iter_0000009", LLAMA2, LAYOUTS["interleaved"], values)
    (folder / "mp_rank_01_000" / "model_optim_rng.pt").unlink()
    with pytest.raises(UserError, match=r"mp_rank_01_000/model_optim_rng\.pt: it is not there"):
        opened(folder)
    (folder / "mp_rank_01_000").rmdir()
    with pytest.raises(UserError, match=r"mp_rank_01_000/model_optim_rng\.pt: it is not there"):
        opened(folder)
    for wrong in (tmp_path, tmp_path / "nothing", folder / "mp_rank_00_000"):
        with pytest.raises(UserError, match=f"{wrong}: no "):
            opened(wrong)
    values["exp_avg", "model.norm.weight"][3] = torch.nan
    bad = save_ranks(tmp_path / "iter_0000010", LLAMA2, LAYOUTS["one"], values)
    with pytest.raises(UserError, match=r"exp_avg of model\.norm\.weight has elements that are NaN"):
        opened(bad).source.check_finite()
