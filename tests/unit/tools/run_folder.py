"""The folder of a run of two stages, as training leaves it, without training."""

import json
from dataclasses import dataclass
from pathlib import Path

import growth
from growth.certificate import Certificate
from pretrain import config
from pretrain.stage.metrics import Metrics
from tests.unit.small import small_curriculum


@dataclass(frozen=True)
class At:
    """Progress of a made-up run."""

    step: int
    stage_tokens: int
    tokens: int
    flops: float
    seconds: float


def make_run(folder: Path, finished: bool = True) -> Path:
    """Stages "seed" and "wide", of six steps each; the second unfinished if asked for."""
    curriculum = small_curriculum(folder)
    run, tokens = folder / "run", 0
    for index, stage in enumerate(curriculum.stages):
        (run / stage.name / "events").mkdir(parents=True)
        (run / stage.name / "config.yaml").write_text(config.to_yaml(stage))

        def at(step: int, tokens: int = tokens) -> At:
            now = tokens + 1000 * step
            return At(step, 1000 * step, now, 1e9 * now, now / 100)

        with Metrics(run / stage.name, curriculum, stage, at(0), world=2) as metrics:
            metrics.log(at(0), validation_loss=6.0 - index, validation_bits_per_byte=3.0 - index)
            for step in range(1, 7):
                metrics.step(at(step), loss=6.0 - index - step / 9, bits_per_byte=2.9, grad_norm=1.0, lr=1e-3)
            metrics.log(at(6), validation_loss=5.0 - index, validation_bits_per_byte=2.5 - index)
        tokens += 6000
        if index:
            old, new = (stage.model.architecture() for stage in curriculum.stages)
            pieces = [[0]] * (new.sizes["vocab"] - old.sizes["vocab"])
            plan = growth.between(old, new, stage.grow.policy(), seed=0, init_std=0.02, pieces=pieces)
            certificate = Certificate.of(
                plan,
                error=3e-7,
                loss_before=5.0,
                loss_after=5.0,
                dead={"lm_head.weight": (5, 1000)},
                bits_per_byte_before=2.5,
                bits_per_byte_after=2.55,
            )
            event = {"stage": stage.name, "plan": plan.to_json(), "certificate": certificate.to_json(), "seconds": 3.0}
            (run / stage.name / "events" / "step-00000000.json").write_text(json.dumps(event))
        if finished or not index:
            (run / stage.name / "DONE").write_text("{}")
    return run
