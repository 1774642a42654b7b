"""Starts the processes of a dry run's ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pretrain.dryrun.findings import ROOT
from pretrain.dryrun.guard import VARIABLE, built

SERVE = ("-m", "pretrain.dryrun.serve")


class Ranks:
    """A server of ranks, as a context manager; every rank is a process of its own, one at a time.

    command: what Python runs in place of the server itself, which must end in `pretrain.dryrun.serve.serve()`.
    """

    def __init__(self, command: Sequence[str] = SERVE) -> None:
        guard = str(built())
        self._folder = tempfile.TemporaryDirectory(prefix="cambium-dryrun-")
        self._said = open(Path(self._folder.name) / "said", "w+")  # noqa: SIM115, closed on exit
        environment = {
            **os.environ,
            "LD_PRELOAD": guard,
            VARIABLE: guard,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
        self._process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env=environment,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._said.close()
        self._folder.cleanup()

    def run(self, **job: Any) -> dict[str, Any]:
        """The answer of one rank; see `serve.answer`. Raises RuntimeError, with what it printed, when it dies."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        to = Path(self._folder.name) / "answer"
        try:
            print(json.dumps({**job, "to": str(to)}), file=self._process.stdin, flush=True)
            status = self._process.stdout.readline().strip()
        except BrokenPipeError:
            status = ""
        if status != "0":
            self._said.seek(0)
            raise RuntimeError(f"the dry run itself failed: {status}\n{self._said.read()[-4000:]}")
        return json.loads(to.read_text())
