"""python -m pretrain.stages CONFIG: what a launcher must know about each stage, one line for each, tab-separated.

The columns are name, ranks, tensor x pipeline ranks, state (done, started or new) and folder. Starts nothing.
"""

import argparse
import sys
from collections.abc import Iterator

import torch

from growth.errors import GrowthError
from pretrain import config
from pretrain.checkpoint.atomic import is_done
from pretrain.config import Curriculum, Stage
from pretrain.distributed import layout_of
from pretrain.errors import UserError

EXAMPLE = """examples:
  python -m pretrain.stages configs/demo.yaml
  python -m pretrain.stages configs/demo.yaml --stage wide --ranks 4 --parallel.tp 4"""


def ranks_of(stage: Stage, gpus: int) -> int:
    """How many ranks to start on one machine: tp * pp * dp, where an absent dp fills the machine's GPUs."""
    model = stage.parallel.tp * stage.parallel.pp
    return model * (stage.parallel.dp or max(1, gpus // model))


def check_ranks(curriculum: Curriculum, stage: Stage, ranks: int, ranks_per_node: int) -> None:
    """Raises UserError, with a submission that would fit, when `ranks` cannot be this stage's tp * pp * dp."""
    try:
        layout_of(stage, ranks)
    except UserError as error:
        model = stage.parallel.tp * stage.parallel.pp
        wanted = model * (stage.parallel.dp or max(1, ranks // model))
        per_node = min(wanted, ranks_per_node)
        while wanted % per_node:
            per_node -= 1
        raise UserError(
            f"{error}\nsbatch --nodes {wanted // per_node} --ntasks-per-node {per_node} slurm/stage.sh "
            f"{curriculum.path} {stage.name}"
        ) from None


def state_of(curriculum: Curriculum, stage: Stage) -> str:
    """done (nothing is left to do), started (there are checkpoints to go on from) or new."""
    folder = curriculum.folder / stage.name
    if is_done(folder):
        return "done"
    return "started" if any((folder / "checkpoints").glob("step-*")) else "new"


def lines(curriculum: Curriculum, stages: list[Stage]) -> Iterator[str]:
    """One line for each stage."""
    for stage in stages:
        ranks = ranks_of(stage, torch.cuda.device_count())
        model = stage.parallel.tp * stage.parallel.pp
        yield "\t".join(
            [stage.name, str(ranks), str(model), state_of(curriculum, stage), str(curriculum.folder / stage.name)]
        )


def main(arguments: list[str] | None = None) -> int:
    """The command line; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pretrain.stages",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("config", help="the curriculum, a YAML file")
    parser.add_argument("--stage", help="only this stage; further arguments override its keys (--parallel.tp 2)")
    parser.add_argument("--ranks", type=int, help="check that the stage can run on this many ranks")
    parser.add_argument("--ranks-per-node", type=int, default=8, help="for the advice (default: %(default)s)")
    options, overrides = parser.parse_known_args(arguments)
    if not options.stage and (overrides or options.ranks):
        parser.error("--ranks and overrides need --stage")
    try:
        curriculum = config.load(options.config)
        stages = list(curriculum.stages)
        if options.stage:
            stages = [curriculum.override(curriculum.stage(options.stage), overrides)]
        if options.ranks:
            check_ranks(curriculum, stages[0], options.ranks, options.ranks_per_node)
        print(*lines(curriculum, stages), sep="\n")
    except (UserError, GrowthError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
