"""What a stage costs, against what its training counts."""

from dataclasses import replace

import pytest

from pretrain import config
from pretrain.estimate import cost, flops, memory
from pretrain.estimate.speed import GPUS
from pretrain.layout import Layout


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


def test_the_model_before_may_need_more_than_the_one_that_it_becomes() -> None:
    """Four ranks cannot share 22 heads, so that each measures all of them: 16.4 GiB in a dry run, and 8.7 after."""
    curriculum = config.load("configs/llama2_55m_to_7b.yaml")
    stage = curriculum.stage("6.7b")
    (old,) = memory.growing(stage, curriculum.parent(stage))
    train = replace(stage.train, micro_batch=1, global_batch=64)
    layout = Layout.make(32, tp=4, pp=4, dp=8, pipeline=[4] * 8, sequence_parallel=True)
    assert layout.of_parent(old, 8).tp == 1
    arch = stage.model.architecture()
    alone, grown = (memory.worst(arch, layout, train, before=before) for before in ((), [old]))
    assert (alone.total - alone.allowance) / 2**30 == pytest.approx(8.7, rel=0.01)
    assert (grown.total - grown.allowance) / 2**30 == pytest.approx(16.4, rel=0.01)
    cut = memory.worst(arch, layout, train, before=[old.replace({"heads": 20, "kv_heads": 20})])
    assert cut.event < 2**28
