"""What is learned of a growth is left as it was, and the rest grows first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from growth.learn import map_flops, with_axes
from pretrain.config import Model
from pretrain.event.learn import _reduced
from tests.unit.small import small_curriculum


@pytest.mark.parametrize(("layers", "share"), [(8, 2), (8, 1), (4, 1)])
def test_layers_that_blocks_share(layers: int, share: int, tmp_path: Path) -> None:
    """Deeper, or untied: before the maps of layers are learned, each is called as often as in the old model."""
    wide = small_curriculum(tmp_path).stages[1]
    shared: Model = replace(wide.model, layers=4, share=2)
    old = replace(shared, hidden=128).architecture()
    stage = replace(wide, model=replace(shared, layers=layers, share=share))
    first, new = _reduced(stage, old, ["layers"]).model.architecture(), stage.model.architecture()
    assert (first.blocks, first.sizes["hidden"]) == (old.blocks, 256)
    assert with_axes(first, ["layers"], new) == new
    assert with_axes(new, ["layers", "kv_heads"], old) == first
    assert map_flops(first, new) > 0
