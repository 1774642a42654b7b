"""What a stage with a memory cannot have is refused by its key."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pretrain import config
from pretrain.errors import UserError
from pretrain.families.text import open_feed
from tests.unit.small import TEXT


def load(folder: Path, **sections: dict[str, Any]) -> config.Curriculum:
    """The small curriculum with these keys at its top."""
    raw = yaml.safe_load(TEXT)
    for name, keys in sections.items():
        raw[name] = {**raw.get(name, {}), **keys}
    path = folder / "memory.yaml"
    path.write_text(yaml.safe_dump(raw))
    return config.load(path)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"train": {"eval_memory": 8}}, r"train\.eval_memory: 8, but train\.memory is 0 or missing"),
        ({"train": {"memory": 8}, "data": {"packing": "best_fit"}}, r"data\.packing: best_fit, but train\.memory is 8"),
        (
            {"train": {"memory": 9}, "parallel": {"tp": 2, "sequence_parallel": True}},
            r"train\.memory: 9 is no multiple of parallel\.tp 2",
        ),
    ],
)
def test_bad_memories(tmp_path: Path, sections: dict[str, dict[str, Any]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(tmp_path, **sections)


def test_a_family_without_one(tmp_path: Path) -> None:
    stage = load(tmp_path, train={"memory": 8}).stages[0]
    stage = replace(stage, model=replace(stage.model, family="gpt2"))
    with pytest.raises(UserError, match=r"train\.memory: 8, but a gpt2 has no memory, as llama2, .* can; remove it"):
        open_feed(stage)
