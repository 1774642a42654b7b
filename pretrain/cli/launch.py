"""python -m pretrain.cli.launch CONFIG --stage NAME [--train.lr 3e-4 ...]: all ranks of a stage, on this machine.

torch.distributed.run with a stage's number of ranks and its exit codes: 0, finished (DONE) or stopped on request (no
DONE); 2, the user's error; anything else is a crash. TERM, INT and USR1 ask the ranks to save and leave.
"""

import logging
import os
import signal
import sys
from collections.abc import Sequence

import torch
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from pretrain import config
from pretrain.cli import command
from pretrain.config.layouts import ranks_of
from pretrain.runtime.files import is_done
from pretrain.stage.mirrored import bring_back

EXAMPLE = """example:
  python -m pretrain.cli.launch configs/demo.yaml --stage wide --train.lr 1e-3"""
SAVE_SECONDS = 600  # how long the ranks may take to save after a signal, before they are killed


def launch(world: int, command: Sequence[str]) -> int:
    """Runs `python COMMAND` (a script or -m module, and its arguments) on `world` ranks; returns its exit code.

    0 after a signal too: a stage that was stopped is not an error.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // world)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the rank itself says what is wrong
    options = ["--standalone", f"--nproc-per-node={world}", "--signals-to-handle=SIGTERM,SIGUSR1"]
    options += [f"--shutdown-timeout={SAVE_SECONDS}"]
    # Ctrl-C is a wish to stop as well, but Python's ranks would die of an INT that is passed on to them.
    signal.signal(signal.SIGINT, lambda number, frame: os.kill(os.getpid(), signal.SIGTERM))
    try:
        run(parse_args([*options, *command]))
    except SignalException:
        return 0
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        if 2 in codes.values():  # the other ranks may have been killed because of it
            return 2
        rank, failure = error.get_first_failure()
        print(f"error: rank {rank} ended with {_reason(failure.exitcode)}", file=sys.stderr)
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    return 0


def _reason(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"


def main(arguments: list[str]) -> int:
    """The command line; gives the exit code."""
    parser = command.make_parser(f"{__doc__}\n{EXAMPLE}", "python -m pretrain.cli.launch")
    parser.add_argument("config", help="the curriculum, a YAML file")
    parser.add_argument("--stage", required=True, help="name of the stage; further arguments override its keys")
    options, overrides = parser.parse_known_args(arguments)

    def work() -> int:
        curriculum = config.load(options.config)
        stage = curriculum.override(curriculum.stage(options.stage), overrides)
        bring_back(curriculum, stage)
        code = launch(ranks_of(stage, torch.cuda.device_count()), ["-m", "pretrain", *arguments])
        if code == 0 and not is_done(curriculum.folder / stage.name):
            print(f"{stage.name} was stopped before its end; the same command goes on with it", file=sys.stderr)
        return code

    return command.guarded(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
