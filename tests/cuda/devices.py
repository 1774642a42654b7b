"""Runs functions of tests.cuda.work on a GPU and on the CPU, each in a process of its own that stays for the next one.

With CUDA_TESTS_ON_CPU set, the CPU stands in for the GPU: that tries the tests, and says nothing of a GPU.
"""

from __future__ import annotations

import os
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

TIMEOUT = 150  # seconds
ON_CPU = "CUDA_TESTS_ON_CPU"

_pools: dict[str, ProcessPoolExecutor] = {}


def _begin(where: str) -> None:
    """In the process, before anything is imported that looks for a GPU."""
    if where == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from pretrain.runtime import device, ranks

    device.prepare(tp=1, deterministic=where == "deterministic")
    import pretrain.engine  # noqa: F401  # why it comes first is said there

    ranks.join()


def _call(name: str, args: tuple[Any, ...]) -> Any:
    from tests.cuda import work

    return getattr(work, name)(*args)


def _submit(where: str, name: str, args: tuple[Any, ...]) -> Future[Any]:
    if where not in _pools:
        _pools[where] = ProcessPoolExecutor(1, get_context("spawn"), _begin, (where,))
    return _pools[where].submit(_call, name, args)


def _result(where: str, future: Future[Any]) -> Any:
    try:
        return future.result(TIMEOUT)
    except BaseException:  # an error of CUDA stays in its process: the next test gets another one
        end(where)
        raise


def on(where: str, name: str, *args: Any) -> Any:
    """What work.NAME(*args) returns on "cuda", on the "cpu", or on CUDA under train.deterministic ("deterministic")."""
    return _result(where, _submit(where, name, args))


def both(name: str, *args: Any) -> tuple[Any, Any]:
    """The same on CUDA and on the CPU, at the same time."""
    cuda, cpu = _submit("cuda", name, args), _submit("cpu", name, args)
    return _result("cuda", cuda), _result("cpu", cpu)


def end(where: str) -> None:
    """End the process, whatever it does."""
    if pool := _pools.pop(where, None):
        for process in list((pool._processes or {}).values()):
            process.kill()
        pool.shutdown(wait=False, cancel_futures=True)


def end_all() -> None:
    """End all of them."""
    for where in list(_pools):
        end(where)
