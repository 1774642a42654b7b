"""python -m pretrain CONFIG --stage NAME [--train.lr 3e-4 ...]: one rank of one stage.

Exit codes: 0, finished (the stage's folder holds DONE) or stopped on request (it does not); 2, the user's error;
anything else is a crash.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType

_stop = False


def _request_stop(number: int, frame: FrameType | None) -> None:
    global _stop
    _stop = True


# Before the slow imports: a scheduler's signal that arrives during them must not kill the rank.
for _signal in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(_signal, _request_stop)

import logging  # noqa: E402
import os  # noqa: E402
import warnings  # noqa: E402

from growth.errors import GrowthError  # noqa: E402
from pretrain import config  # noqa: E402
from pretrain.cli import command  # noqa: E402
from pretrain.config import Curriculum, Stage  # noqa: E402
from pretrain.errors import UserError  # noqa: E402
from pretrain.event import plan  # noqa: E402
from pretrain.runtime import device, ranks, startup  # noqa: E402

DESCRIPTION = "Train one stage of a curriculum: grown from its parent, resumed, or from nothing."
EXAMPLE = """example:
  python -m pretrain configs/demo.yaml --stage seed
  python -m torch.distributed.run --nproc_per_node 2 -m pretrain configs/demo.yaml --stage wide --train.lr 1e-3
  python -m pretrain configs/demo.yaml --stage wide --help        every key that may be overridden, with its value

signals: USR1 and TERM save a checkpoint and leave with code 0; the same command goes on from there."""


def main(arguments: list[str]) -> int:
    # With --stage, --help is left to the stage's own parser, which lists its keys.
    parser = command.make_parser(f"{DESCRIPTION}\n{EXAMPLE}", "python -m pretrain", "--stage" not in arguments)
    parser.add_argument("config", help="the curriculum, a YAML file")
    parser.add_argument("--stage", required=True, help="name of the stage")
    options, overrides = parser.parse_known_args(arguments)
    resolved: list[tuple[Curriculum, Stage]] = []

    def prepare() -> int:
        curriculum = config.load(options.config)
        stage = curriculum.override(curriculum.stage(options.stage), overrides)
        plan.check(curriculum, stage, ranks.world_size())
        resolved.append((curriculum, stage))
        return 0

    def work() -> int:
        ((curriculum, stage),) = resolved
        _quiet(int(os.environ.get("RANK", "0")))
        device.prepare(tp=stage.parallel.tp, deterministic=stage.train.deterministic)
        import pretrain.engine  # noqa: F401  # takes seconds; its docstring says why it comes first
        from pretrain.stage.train import train

        startup.through("imports")
        ranks.join()
        startup.through("meeting the other ranks")
        train(curriculum, stage, lambda: _stop)
        return 0

    print_error = os.environ.get("LOCAL_RANK", "0") == "0"
    # Storage that fails during training is no error of the user's, so that the stage is started again.
    return command.guarded(prepare, print_error=print_error) or command.guarded(
        work, (UserError, GrowthError), print_error
    )


def _quiet(rank: int) -> None:
    """Only rank 0 reports; what the libraries say about optional packages is of no use to a user."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("pretrain").setLevel(logging.INFO if rank == 0 else logging.ERROR)
    warnings.filterwarnings("ignore", module=r"megatron|torch|deepspeed")


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    # Leave without tearing the process groups down: a rank that ends first must not disturb one that still reports.
    import torch.distributed

    if torch.distributed.is_initialized() and code == 0:
        torch.distributed.destroy_process_group()
    sys.exit(code)
