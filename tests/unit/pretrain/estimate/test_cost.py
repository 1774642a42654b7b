"""What a stage costs, against what its training counts."""

import pytest

from pretrain import config
from pretrain.estimate import cost, flops
from pretrain.estimate.speed import GPUS


def test_patches_cost_from_when_they_come() -> None:
    """Nine layers that come one by one, each after another tenth, onto one."""
    curriculum = config.load("configs/bert_pli.yaml")
    (stage,) = curriculum.stages
    plain = ["--train.epochs", "0", "--train.tokens", "100000000"]
    stage = curriculum.override(stage, plain)
    found = cost.of_stage(stage, None, gpu=GPUS["a100-80gb"])
    a_token = [
        flops.training_flops(found.arch.replace({"layers": layers}), stage.train.seq_len) for layers in range(1, 11)
    ]
    assert found.flops == pytest.approx(sum(a_token) / 10 * 1e8)
    assert found.seconds < 1e8 / found.tokens_per_second
