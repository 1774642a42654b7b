"""python -m tests.golden.starter FOLDER: commands of Python, one after the other, in forks of one process.

Most of the seconds that a rank needs to start go into the import of torch, Megatron-core and DeepSpeed. Here they are
imported once, with what they leave for later, and nothing of Cambium's: each rank runs `python WORDS` in FOLDER as a
process of its own would, from its first line. Standard input holds the commands, in JSON:
[{"words": ["-m", "pretrain", ...], "ranks": 2}, ...]. The exit code is that of the first command that fails; what
follows it is not run.
"""

import json
import os
import runpy
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn


def main(folder: str) -> int:
    """Runs what standard input says; gives the exit code."""
    commands = json.load(sys.stdin)
    import deepspeed.module_inject.auto_ep_layer
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    import megatron.core.models.bert.bert_model
    import megatron.core.models.gpt.gpt_model
    import megatron.core.transformer.multi_token_prediction  # noqa: F401
    import numba
    import pydantic  # noqa: F401
    import safetensors.torch  # noqa: F401
    import sentencepiece  # noqa: F401
    import tokenizers  # noqa: F401
    import torch._dynamo  # noqa: F401
    import tyro  # noqa: F401

    numba.njit(lambda: None)()

    os.chdir(folder)
    for command in commands:
        print("python", *command["words"], file=sys.stderr, flush=True)
        if code := _run(command["words"], command["ranks"]):
            return code
    return 0


def _run(words: Sequence[str], ranks: int) -> int:
    """The first exit code that is not 0; the ranks that are left are killed then, for they would wait for ever."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = set()
    for rank in range(ranks):
        pid = os.fork()
        if not pid:
            _rank(words, {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port})
        running.add(pid)
    failed = 0
    while running:
        pid, status, used = os.wait4(-1, 0)
        print(f"{used.ru_utime + used.ru_stime:.1f} s of CPU", file=sys.stderr, flush=True)
        running.discard(pid)
        if status and not failed:
            failed = os.waitstatus_to_exitcode(status)
            for other in running:
                with suppress(ProcessLookupError):
                    os.kill(other, signal.SIGKILL)
    return failed


def _rank(words: Sequence[str], place: dict[str, int]) -> NoReturn:
    """Is `python WORDS`, with torch.distributed's environment of a rank."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in place.items()}}
    code: object = 1
    try:
        if words[0] == "-m":
            sys.argv, sys.path[0] = list(words[1:]), os.getcwd()
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0] = list(words), os.path.dirname(words[0])
            runpy.run_path(words[0], run_name="__main__")
        code = 0
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
