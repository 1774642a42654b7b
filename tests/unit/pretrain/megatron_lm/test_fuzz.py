"""Damaged checkpoints of others: each is read as far as it is sound, or refused in one line; nothing else happens."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from growth import Box
from pretrain.errors import UserError
from pretrain.layout import Layout
from pretrain.megatron_lm.export import export_megatron
from pretrain.megatron_lm.folders import opened
from tests.unit.pretrain.megatron_lm.folders import KINDS, LLAMA2, drawn, save_ranks
from tests.unit.pretrain.megatron_lm.test_export import checkpoint_of

CHANGES = 16  # of each file
HEAD = 6000  # bytes in which there is more than numbers


def changed(data: bytes, draw: random.Random) -> bytes:
    """Cut off, with some bytes flipped, or without some."""
    how, at = draw.random(), draw.randrange(min(len(data), HEAD))
    if how < 0.2:
        return data[: draw.randrange(len(data))]
    if how < 0.4:
        return data[:at] + data[at + draw.choice([1, 2, 8]) :]
    return data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]


@pytest.mark.parametrize("name", ["mp_rank_01/model_optim_rng.pt", ".metadata", "common.pt", "__0_0.distcp"])
def test_damage_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    if name.startswith("mp_rank"):
        folder = save_ranks(tmp_path / "iter_0000009", LLAMA2, Layout.make(3, tp=2), drawn(LLAMA2))
    else:
        export_megatron(checkpoint_of(tmp_path / "run", LLAMA2), tmp_path / "out")
        folder = tmp_path / "out" / "iter_0000004"
    draw, said = random.Random(name), list[str]()
    sound = (folder / name).read_bytes()
    for _ in range(CHANGES):
        (folder / name).write_bytes(changed(sound, draw))
        try:
            source = opened(folder).source
            for tensor in source.arch.tensors().values():
                source.read(KINDS[0], tensor.name, Box.whole(tensor.shape))
        except UserError as error:
            said.append(str(error))
    assert len(said) > CHANGES // 4
    assert all(len(line.splitlines()) == 1 for line in said)
