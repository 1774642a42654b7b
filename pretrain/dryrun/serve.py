"""python -m pretrain.dryrun.serve: the process from which ranks of a dry run are forked, each with all imports done.

Reads jobs from its standard input, a line of JSON each, and answers each with a line: 0, or what went wrong. The answer
itself is in the file that the job names. Started by `launch` alone, with the guard preloaded.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any


def prepare() -> None:
    """Install the device that is not there, and import what the ranks will need."""
    os.environ.pop("LD_PRELOAD", None)
    os.environ |= {"DS_ACCELERATOR": "cuda", "TORCHDYNAMO_DISABLE": "1"}
    warnings.filterwarnings("ignore")
    import torch._dynamo  # which looks at every function of torch, and must find its own

    assert torch._dynamo
    from pretrain.dryrun import collectives, device, kernels, tensors

    device.install()
    tensors.install()
    collectives.install()
    kernels.install()
    device.in_every_thread(tensors.Device)
    with tensors.Device():
        from pretrain.dryrun import passes, sampling

        assert passes
        sampling.install()
    gc.collect()
    gc.freeze()  # half of a small rank's time would go into looking at what has been imported


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """Go through all passes as one rank; what was seen and found."""
    from pretrain.dryrun import settings, tensors
    from pretrain.dryrun.collectives import RECORD, join
    from pretrain.dryrun.findings import FINDINGS
    from pretrain.dryrun.memory import MEMORY
    from pretrain.dryrun.passes import Passes

    curriculum, stage, layout = settings.load(job["config"], job["stage"], settings.Overrides(**job["overrides"]))
    rank = job["rank"]
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank % 8), "WORLD_SIZE": str(layout.world)}
    FINDINGS.clear()
    with tensors.Device():
        join(rank, layout.world)
        seen = Passes(curriculum, stage, layout, rank).go()
    return {
        **asdict(seen),
        "phases": [asdict(phase) for phase in MEMORY.result()],
        "findings": [asdict(finding) for finding in FINDINGS],
        "calls": RECORD.calls,
    }


def serve() -> None:
    """Until there are no more jobs."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print
    prepare()
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            _child(job)
        _, status = os.waitpid(child, 0)
        print(
            0 if status == 0 else f"rank {job['rank']} of {job['stage']} ended with status {status}",
            file=answers,
            flush=True,
        )


def _child(job: dict[str, Any]) -> None:
    """Answers one job, and never returns."""
    code = 1
    try:
        Path(job["to"]).write_text(json.dumps(answer(job)))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
