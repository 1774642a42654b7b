"""Checkpoints of ours as Megatron-LM's torch_dist: back bit for bit, one step for all generations, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import growth
from growth import Architecture, Box, Generations
from pretrain.checkpoint import Reader, step_folder, write_checkpoint
from pretrain.errors import UserError
from pretrain.megatron_lm import export
from pretrain.megatron_lm.corrections import Corrections
from pretrain.megatron_lm.export import export_megatron
from pretrain.megatron_lm.folders import opened
from pretrain.megatron_lm.imports import import_megatron
from pretrain.runtime.files import Lock
from pretrain.schedule.curve import Birth
from pretrain.schedule.progress import Progress
from pretrain.state import State
from tests.unit.pretrain.checkpoint.ranks import run_ranks
from tests.unit.pretrain.megatron_lm.folders import GPT2, KINDS, LLAMA2, SIZES, TIED, drawn
from tools.export_megatron import main

IMPORTED = {
    "stage": "base",
    "imported": {
        "name": "model",
        "config": {},
        "vocabulary": {"order": "identity", "tokenizer": None, "reason": "it has none"},
    },
}


def checkpoint_of(
    folder: Path, arch: Architecture, generations: Generations | None = None, steps: tuple[int, ...] = (7,)
) -> Path:
    """A checkpoint of drawn values, whose generations have made these numbers of updates."""
    values = drawn(arch)
    births = tuple(Birth(0, "base", step) for step in steps)
    state = State(arch, generations or Generations.first(arch), births, Progress(step=4), None, (IMPORTED,))
    path = step_folder(folder / "checkpoints", 4)

    def read(kind: str, name: str, box: Box) -> torch.Tensor:
        return values[kind, name][box.slices()]

    config: dict[str, Any] = {"train": {"betas": [0.9, 0.99], "lr": 1e-3, "seq_len": 6}}
    write_checkpoint(path, 4, list(KINDS), read, state.fields("base", config, list(steps)), {})
    return path


@pytest.mark.parametrize("arch", [LLAMA2, GPT2, TIED], ids=lambda arch: arch.family)
def test_what_goes_out_comes_back_bit_for_bit(
    arch: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In many chunks and files too."""
    monkeypatch.setattr(export, "CHUNK", 128)
    monkeypatch.setattr(export, "FILE", 20_000)
    path = checkpoint_of(tmp_path / "run" / "base", arch)
    exported = export_megatron(path, tmp_path / "out")
    assert (exported.iteration, exported.step, exported.moments) == (4, 7, True)
    assert len(list((tmp_path / "out" / "iter_0000004").glob("*.distcp"))) > 1
    back = import_megatron(tmp_path / "out", tmp_path / "run" / "again")
    assert (back.iteration, back.step, back.optimizer["lr"]) == (4, 7, 1e-3)
    for kind in KINDS:
        name = f"{kind}-00000.safetensors"
        assert (back.checkpoint / name).read_bytes() == (path / name).read_bytes()


def test_an_export_that_was_killed_and_one_that_lives(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What the first has left goes; the second is not disturbed."""
    path, work = checkpoint_of(tmp_path / "run" / "base", LLAMA2), tmp_path / ".out.partial"
    (work / "iter_0000004").mkdir(parents=True)
    (work / "iter_0000004" / "left.distcp").write_bytes(b"half")
    with Lock(work / export.LOCK):
        assert run_ranks(1, lambda rank: main([str(path), str(tmp_path / "out")]), tmp_path / "store") == [2]
    assert "must not write one folder" in capfd.readouterr().err
    assert (work / "iter_0000004" / "left.distcp").exists()
    export_megatron(path, tmp_path / "out")
    assert not list((tmp_path / "out").glob("**/left.distcp")) + list((tmp_path / "out").glob(export.LOCK))
    assert not work.exists()


def test_generations_have_one_step_there(tmp_path: Path) -> None:
    """What Adam makes of its moments is the same with the step of the oldest as with each one's own."""
    plan = growth.between(LLAMA2, LLAMA2.replace({"layers": 4, "ffn": 16}), {}, seed=0, init_std=0.02)
    generations = plan.generations(Generations.first(LLAMA2))
    path = checkpoint_of(tmp_path / "run" / "base", plan.new, generations, (100, 3))
    with Reader(path) as reader:
        corrections = Corrections(reader.manifest, plan.new)
        assert corrections.step == 100
        for name, tensor in plan.new.tensors().items():
            box = Box.whole(tensor.shape)
            born = generations.of(tensor, box).long()
            assert torch.equal(corrections.read(reader, "weight", name, box), reader.read("weight", name, box))
            for kind, beta in (("exp_avg", 0.9), ("exp_avg_sq", 0.99)):
                own = reader.read(kind, name, box) / torch.tensor([1 - beta**100, 1 - beta**3])[born]
                there = corrections.read(reader, kind, name, box) / (1 - beta**100)
                torch.testing.assert_close(there, own, rtol=1e-5, atol=0)
    assert export_megatron(path, tmp_path / "out").step == 100
    assert opened(tmp_path / "out").step == 100


def test_what_megatron_cannot_have_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mixed = Architecture("llama2", {**SIZES, "kv_heads": 2}, kinds=("attention", "mlp", "layer"))
    for number, arch in enumerate((mixed, LLAMA2.replace(scalars={"softmax_scale": 0.3}))):
        path = checkpoint_of(tmp_path / str(number), arch)
        with pytest.raises(UserError, match="Megatron-LM has no such model"):
            export_megatron(path, tmp_path / "out")
    path = checkpoint_of(tmp_path / "run", LLAMA2)
    (tmp_path / "out").mkdir()
    assert main([str(path), str(tmp_path / "out")]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main([str(path), str(tmp_path / "other")]) == 0
    assert "as iteration 4" in capsys.readouterr().out
