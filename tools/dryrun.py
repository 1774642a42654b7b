"""Runs the code path of CUDA without a GPU: every stage, as a rank of each kind, at full size, without values.

A rank starts from nothing or grows from its parent, trains some steps, validates, saves, applies its patches, is freed,
resumes and trains again. Ends with exit code 1 when anything is wrong: a shape, type or device that does not fit; a
tensor that NCCL would refuse; a send without its receive; ranks of a group with collectives in another order; a wait of
the host in a step that is not allowed; a peak of memory that is above the GPU, or more than 5 % off tools/plan.py. The
first time it needs g++.

What it cannot prove: numbers, that a kernel exists or which one CUDA takes, races between streams, hangs that are no
matter of order, the memory of NCCL, cuBLAS and the CUDA context, fragmentation, time. Of growth's arithmetic on the
host, which needs no GPU, it does one box of each kind of tensor; a step has as many micro-batches as fill the pipeline.

examples:
  python tools/dryrun.py configs/llama2_55m_to_7b.yaml
  python tools/dryrun.py configs/llama2_55m_to_7b.yaml --stage 6.7b --shapes
  python tools/dryrun.py configs/llama2_55m_to_7b.yaml --stage 6.7b --tp 4 --pp 4 --chunks 2 --dp 8 --micro-batch 1
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial

from tqdm import tqdm

from pretrain import config
from pretrain.cli import command
from pretrain.cli.command import Answer
from pretrain.dryrun import ranks, report, settings, verdict
from pretrain.dryrun.launch import Ranks
from pretrain.dryrun.settings import Overrides
from pretrain.dryrun.verdict import Verdict
from pretrain.errors import UserError
from pretrain.estimate.speed import GPUS


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="the curriculum, a YAML file")
    parser.add_argument("--stage", action="append", help="only this one (may be repeated)")
    parser.add_argument("--rank", action="append", type=int, help="only this one, of any kind (may be repeated)")
    parser.add_argument("--gpu", choices=sorted(GPUS), default="a100-80gb", help="default: %(default)s")
    parser.add_argument(
        "--tp", type=int, help="tensor-parallel ranks, in place of the stage's (with sequence parallelism)"
    )
    parser.add_argument("--pp", type=int, help="pipeline ranks, in place of the stage's")
    parser.add_argument("--chunks", type=int, help="chunks of each pipeline rank (more than 1: interleaved)")
    parser.add_argument("--dp", type=int, help="data-parallel ranks, in place of the stage's")
    parser.add_argument("--micro-batch", type=int, help="in place of the stage's")
    parser.add_argument("--recompute", choices=("none", "selective", "full"), help="in place of the stage's")
    parser.add_argument("--shapes", action="store_true", help="also list what every module is given and makes")


def work(options: argparse.Namespace) -> Answer:
    """Raises UserError for a stage, rank or layout that cannot be."""
    curriculum = config.load(options.config)
    names = options.stage or [stage.name for stage in curriculum.stages]
    verdicts = []
    for result in _verdicts(options, names):
        verdicts.append(result)
        if not options.json:
            print(report.text(result, shapes=options.shapes), end="\n\n", flush=True)
    wrong = [result.stage for result in verdicts if result.problems]
    summary = f"{len(verdicts)} stages, " + (f"wrong: {', '.join(wrong)}" if wrong else "all pass")
    return Answer(summary, {"stages": [report.data(result) for result in verdicts]}, code=1 if wrong else 0)


def _verdicts(options: argparse.Namespace, names: Sequence[str]) -> Iterator[Verdict]:
    overrides = Overrides(
        **{key: getattr(options, key) for key in ("tp", "pp", "dp", "chunks", "micro_batch", "recompute")}
    )
    chosen = [(name, *settings.load(options.config, name, overrides)) for name in names]
    with Ranks() as server:
        for name, curriculum, stage, layout in chosen:
            numbers = options.rank or ranks.kinds(layout)
            if outside := [n for n in numbers if not 0 <= n < layout.world]:
                raise UserError(f"--rank {outside[0]}: stage {name!r} has ranks 0 to {layout.world - 1}")
            answers = [
                server.run(config=options.config, stage=name, rank=number, overrides=asdict(overrides))
                for number in tqdm(numbers, desc=name, unit="rank", disable=None)
            ]
            yield verdict.of(curriculum, stage, layout, answers, GPUS[options.gpu].memory)


main = partial(command.run, __doc__, arguments, work)

if __name__ == "__main__":
    sys.exit(main())
