"""python -m pretrain.cli.submission CONFIG: what a launcher must know of each stage, a line each, tab-separated.

The columns are name, state (done, started or new), ranks, nodes and folder. Starts nothing. With --ranks-per-node it
first checks all that a submission needs (corpus, tokenizer, growth, ranks, mirrors) and says all that is wrong at once;
with --nodes as well, that the stage fits just that allocation, for which it is brought back from its mirror if it is
not here.
"""

import os
import sys
from collections.abc import Collection, Iterator

import torch

from growth.errors import GrowthError
from pretrain import config
from pretrain.cli import command
from pretrain.config import Curriculum, Stage
from pretrain.config.layouts import layout_of, ranks_of
from pretrain.errors import UserError
from pretrain.runtime.files import is_done
from pretrain.stage import mirrored

EXAMPLE = """examples:
  python -m pretrain.cli.submission configs/demo.yaml
  python -m pretrain.cli.submission configs/demo.yaml --ranks-per-node 8
  python -m pretrain.cli.submission configs/demo.yaml --stage wide --ranks-per-node 4 --nodes 1 --parallel.tp 4"""


def nodes_of(curriculum: Curriculum, stage: Stage, per_node: int) -> int:
    """How many nodes of `per_node` ranks the stage fills; an absent dp fills one node, or is 1 on several.

    Raises UserError, with a command that would fit, for ranks that cannot be spread evenly.
    """
    ranks = ranks_of(stage, per_node)
    if ranks <= per_node:
        return 1
    if ranks % per_node:
        fits = max(number for number in range(1, per_node) if ranks % number == 0)
        raise UserError(
            f"{stage.name}: its {ranks} ranks (parallel.tp x pp x dp) would fill {ranks / per_node:.2f} nodes of "
            f"{per_node}: change its parallel section, or leave a part of each node idle with\n"
            f"CAMBIUM_RANKS_PER_NODE={fits} bash slurm/curriculum.sh {curriculum.path}"
        )
    return ranks // per_node


def submission(curriculum: Curriculum, stage: Stage, nodes: int, tasks: int) -> str:
    """The command line that submits a stage as `nodes` x `tasks` ranks."""
    gpus = "" if os.environ.get("CAMBIUM_GPUS") == "0" else f" --gpus-per-node {tasks}"
    return f"sbatch --nodes {nodes} --ntasks-per-node {tasks}{gpus} slurm/stage.sh {curriculum.path} {stage.name}"


def check_allocation(curriculum: Curriculum, stage: Stage, nodes: int, tasks: int, per_node: int) -> None:
    """Checks that a stage runs on just `nodes` nodes with `tasks` ranks each, where a node has GPUs for `per_node`.

    Raises UserError, with a submission that would fit, when they are not tp * pp * dp ranks, and what
    pretrain.event.plan.check raises.
    """
    from pretrain.event import plan  # takes seconds, which a mere list of the stages does without

    try:
        layout_of(stage, nodes * tasks)
    except UserError as error:
        ranks = ranks_of(stage, nodes * tasks)
        fits = max(number for number in range(1, max(tasks, per_node) + 1) if ranks % number == 0)
        try:
            layout_of(stage, ranks)
        except UserError:  # no allocation fits, since it is the batch that does not
            raise error from None
        raise UserError(f"{error}\n{submission(curriculum, stage, ranks // fits, fits)}") from None
    plan.check(curriculum, stage, nodes * tasks)


def check_submission(curriculum: Curriculum, stages: list[Stage], per_node: int, ahead: Collection[str]) -> None:
    """Checks that every stage can run on nodes of `per_node` ranks, once those `ahead` (names) have finished.

    Raises one UserError with all that is wrong.
    """
    from pretrain.event import plan

    problems = []
    for stage in stages:
        try:
            nodes_of(curriculum, stage, per_node)
            plan.check(curriculum, stage, ranks_of(stage, per_node), ahead)
            mirrored.check(curriculum, stage)
        except (UserError, GrowthError) as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))


def state_of(curriculum: Curriculum, stage: Stage) -> str:
    """The state of a stage: done (nothing is left to do), started (there are checkpoints to go on from) or new."""
    folder = curriculum.folder / stage.name
    if is_done(folder):
        return "done"
    return "started" if any((folder / "checkpoints").glob("step-*")) else "new"


def lines(curriculum: Curriculum, stages: list[Stage], per_node: int | None) -> Iterator[str]:
    """Yields the line of each stage; per_node None is for a run on this machine."""
    for stage in stages:
        ranks = ranks_of(stage, per_node or torch.cuda.device_count())
        nodes = nodes_of(curriculum, stage, per_node) if per_node else 1
        folder = curriculum.folder / stage.name
        yield "\t".join([stage.name, state_of(curriculum, stage), str(ranks), str(nodes), str(folder)])


def main(arguments: list[str] | None = None) -> int:
    """The command line; gives the exit code."""
    parser = command.make_parser(f"{__doc__}\n{EXAMPLE}", "python -m pretrain.cli.submission")
    parser.add_argument("config", help="the curriculum, a YAML file")
    parser.add_argument(
        "--stage", action="append", help="only this one (may be repeated); further arguments override its keys"
    )
    parser.add_argument(
        "--ranks-per-node", type=command.positive, help="ranks of a node, for the checks of a submission"
    )
    parser.add_argument(
        "--nodes", type=command.positive, help="nodes of the allocation that there is, for the one stage"
    )
    parser.add_argument(
        "--gpus-per-node", type=command.positive, default=8, help="for the advice (default: %(default)s)"
    )
    parser.add_argument("--ahead", action="append", default=[], help="a stage that is queued (may be repeated)")
    options, overrides = parser.parse_known_args(arguments)
    single = options.stage is not None and len(options.stage) == 1
    if not single and (overrides or options.nodes):
        parser.error("--nodes and overrides need one --stage")
    if options.nodes and not options.ranks_per_node:
        parser.error("--nodes needs --ranks-per-node")

    def work() -> int:
        curriculum = config.load(options.config)
        stages = [curriculum.stage(name) for name in options.stage or [stage.name for stage in curriculum.stages]]
        if overrides:
            stages = [curriculum.override(stages[0], overrides)]
        per_node = options.ranks_per_node
        if options.nodes:
            mirrored.bring_back(curriculum, stages[0])
            check_allocation(curriculum, stages[0], options.nodes, per_node, options.gpus_per_node)
            per_node = None
        elif per_node:
            ahead = {*options.ahead, *(stage.name for stage in stages)}
            check_submission(curriculum, stages, per_node, ahead)
        command.say("\n".join(lines(curriculum, stages, per_node)))
        return 0

    return command.guarded(work)


if __name__ == "__main__":
    sys.exit(main())
