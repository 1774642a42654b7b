"""The checksum of a gradient sees every flipped bit; hosts are unfit when they have been wrong twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pretrain.guard import recheck
from pretrain.guard.recheck import SUSPECTS, UNFIT, Unlike, checksum, suspect


@given(
    values=st.lists(st.floats(width=32), min_size=1, max_size=40),
    where=st.integers(0, 39),
    bit=st.integers(0, 31),
    chunk=st.integers(1, 50),
)
def test_every_flipped_bit_is_seen(values: list[float], where: int, bit: int, chunk: int) -> None:
    flat = torch.tensor(values, dtype=torch.float32)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(recheck, "_CHUNK", chunk)
        before = checksum(flat)
        assert before == checksum(flat.clone())
        flat.view(torch.int32)[where % len(values)] ^= -(1 << 31) if bit == 31 else 1 << bit
        assert before != checksum(flat)


def test_the_place_of_a_number_counts() -> None:
    assert checksum(torch.tensor([1.0, 2.0])) != checksum(torch.tensor([2.0, 1.0]))


def test_a_host_is_unfit_when_it_was_wrong_twice(tmp_path: Path) -> None:
    assert suspect(tmp_path, [Unlike(0, "a"), Unlike(1, "a"), Unlike(2, "b")]) == []
    assert not (tmp_path / UNFIT).exists()
    assert suspect(tmp_path, [Unlike(1, "a"), Unlike(4, "c")]) == ["a"]
    assert (tmp_path / UNFIT).read_text() == "a\n"
    assert json.loads((tmp_path / SUSPECTS).read_text()) == {"b": 1, "c": 1}
    assert suspect(tmp_path, [Unlike(2, "b"), Unlike(4, "c")]) == ["b", "c"]
