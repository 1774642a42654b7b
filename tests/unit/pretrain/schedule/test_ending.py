"""When a stage ends: the formula against its published values, and plateaus."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pretrain import config
from pretrain.config import Plateau
from pretrain.errors import UserError
from pretrain.schedule.ending import Ending, gstack_tokens, plateau
from pretrain.schedule.progress import Progress

RULE = Plateau(window=2, threshold=0.01, patience=2)


@pytest.mark.parametrize(
    ("parameters", "tokens", "published"), [(8_000_000_000, 15e12, 6.58e9), (7_000_000_000, 2e12, 11.11e9)]
)
def test_the_formula_of_gstack(parameters: int, tokens: float, published: float) -> None:
    """Llama 3 8B and Llama 2 7B (Du et al. 2024, section 4.2)."""
    assert gstack_tokens(parameters, 6 * parameters * tokens) == pytest.approx(published, rel=1e-3)


@pytest.mark.parametrize(
    ("losses", "falls"),
    [
        ([4.0, 3.0, 2.0, 2.0, 2.0], None),  # from 7 to 4, then from 5 to 4
        ([4.0, 2.0, 2.0, 2.0, 2.0, 2.0], [0.0, 0.0]),
        ([2.0, 2.0, 2.0, 2.0], None),  # one flat window alone
        ([2.0, 2.0, 2.0, 3.0, 3.0], [-0.25, -0.5]),  # rising is no falling
        ([2.0, 2.0, 2.0, 2.0, 1.9], None),
        ([], None),
    ],
)
def test_plateau(losses: list[float], falls: list[float] | None) -> None:
    found = plateau(losses, RULE)
    assert found == (falls if falls is None else pytest.approx(falls))


def write(folder: Path, one: dict[str, Any], two: dict[str, Any]) -> Path:
    model = {"vocab": 300, "hidden": 64, "heads": 4, "ffn": 128}
    train = {"seq_len": 10, "global_batch": 10, "lr": 1e-3, "min_lr": 1e-4, "tokens": 10_000}
    stages = [
        {"name": "one", "model": {**model, "layers": 2}, **one},
        {"name": "two", "model": {**model, "layers": 4}, **two},
    ]
    path = folder / "c.yaml"
    path.write_text(yaml.safe_dump({"name": "c", "data": {"corpus": "none"}, "train": train, "stages": stages}))
    return path


def test_what_a_stage_can_end_by(tmp_path: Path) -> None:
    curriculum = config.load(write(tmp_path, {"train": {"until": "gstack"}}, {"train": {"until": "plateau"}}))
    one, two = curriculum.stages
    ending = Ending.of(curriculum, one, 0)
    assert (ending.tokens, ending.by) == (10_000, "tokens")  # the formula wants more than there are
    assert ending.reasons["tokens_of_the_run"] > 1e12
    progress = Progress(step=99, stage_tokens=9_900, tokens=9_900, held_out=(1.0,) * 20)
    assert ending.decision(progress) is None
    found = Ending.of(curriculum, two, 10_000).decision(progress)
    assert found is not None
    assert found["by"] == "plateau"
    assert Progress(held_out=(1.0,)).validated(float("nan")).held_out == (1.0,)
    assert progress.next_stage().held_out == ()


@pytest.mark.parametrize(
    ("one", "two", "text"),
    [
        ({}, {"train": {"until": "gstack"}}, "stages[1].train.until: gstack, but no stage grows from this one"),
        ({}, {"grow": {"trial": {"candidates": [{"lr": 1}]}}}, "grow.trial.candidates[0]: lr cannot be tried"),
        ({}, {"grow": {"trial": {"candidates": [{"layers": "stak"}]}}}, "grow.trial.candidates[0]: "),
        ({"train": {"until": "plateau", "plateau": {"window": 0}}}, {}, "train.plateau.window"),
    ],
)
def test_errors(one: dict[str, Any], two: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        config.load(write(tmp_path, one, two))
    assert text in str(error.value)


def test_a_loss_of_nothing_cannot_fall() -> None:
    assert plateau([0.0] * 6, RULE) == [0.0, 0.0]
