"""The work of a pipeline of text, for slurm/prepare.sh: what there is to do, one task of it, or all of it.

example:
  python -m pretrain.cli.preparation configs/maths/maths_college.yaml --begin
  python -m pretrain.cli.preparation configs/maths/maths_college.yaml --task clean:0
"""

import argparse
import importlib.util
import sys
from functools import partial
from pathlib import Path
from typing import Any

from pretrain.cli import command
from pretrain.errors import UserError

EXTRA = ("datatrove", "fastwarc", "loguru", "py3langid", "resiliparse")  # packages that a pipeline needs


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pipeline", type=Path, help="a YAML file (docs/pipelines.md has its keys)")
    parser.add_argument("--workers", type=command.positive, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--where", action="store_true", help="check the file, and say where its corpus is to be")
    parser.add_argument(
        "--begin", action="store_true", help="check the file, make the folder of its work and list what is to be done"
    )
    parser.add_argument("--task", metavar="PHASE:NUMBER", help="after --begin: one task of a phase, and nothing else")


def work(options: argparse.Namespace) -> command.Answer:
    """Raises UserError for a pipeline that cannot be run."""
    if options.where:
        return _where(options.pipeline)
    if options.begin:
        return _begin(options.pipeline)
    return _task(options.pipeline, options.task) if options.task else whole(options.pipeline, options.workers)


def whole(pipeline: Path, workers: int) -> command.Answer:
    """All of it, here. Raises UserError for a pipeline that cannot be run."""
    _check_packages()
    from pretrain.prepare import run

    job = run.Job(pipeline)
    description, existed = run.prepare(job, workers, _say)
    text = answer(job.output, description, existed).text
    return command.Answer(f"{text}; {job.output / 'report.md'} says what was left out", description)


def answer(output: Path, description: dict[str, Any], existed: bool) -> command.Answer:
    """What a corpus has, in words."""
    text = (
        f"{output}{' is there already' if existed else ''}: {description['documents']:,} documents,"
        f" {description['bytes']:,} bytes of text,"
        f" {description['tokens']:,} tokens of a vocabulary of {description['vocab_size']:,}"
    )
    return command.Answer(text, description)


def _where(pipeline: Path) -> command.Answer:
    _check_packages()
    from pretrain.prepare import keys

    output = str(Path(keys.load(pipeline).output).absolute())
    return command.Answer(output, {"output": output})


def _begin(pipeline: Path) -> command.Answer:
    """On a line each, the name and number of tasks of each phase that is not done."""
    _check_packages()
    from pretrain.prepare import run

    phases = [(phase.name, phase.tasks) for phase in run.begin(run.Job(pipeline))]
    return command.Answer("\n".join(f"{name}\t{tasks}" for name, tasks in phases), {"phases": phases})


def _task(pipeline: Path, task: str) -> command.Answer:
    _check_packages()
    from pretrain.prepare import run

    name, _, number = task.partition(":")
    run.run_task(run.Job(pipeline), name, int(number) if number.isdecimal() else -1)
    return command.Answer(f"{task} is done", {"task": task})


def _check_packages() -> None:
    if missing := [name for name in EXTRA if not importlib.util.find_spec(name)]:
        raise UserError(f"a pipeline needs {', '.join(missing)}, which is not installed: pip install 'cambium[data]'")


def _say(phase: str, number: int, phases: int) -> None:
    print(f"{number + 1} of {phases}: {phase}", file=sys.stderr, flush=True)


main = partial(command.run, __doc__, arguments, work)

if __name__ == "__main__":
    sys.exit(main())
