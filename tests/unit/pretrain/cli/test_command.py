"""One runner for all command lines: what is an error of the user's, and what a fault of Cambium."""

from __future__ import annotations

import argparse
import errno
import re
from pathlib import Path
from typing import NoReturn

import pytest
import torch.distributed as dist

from growth import GrowthError
from pretrain.cli import command
from pretrain.errors import UserError

ROOT = Path(__file__).parents[4]


def raising(error: BaseException) -> NoReturn:
    raise error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("here: x is wrong; do y"), "here: x is wrong; do y"),
        (GrowthError("hidden: would shrink"), "hidden: would shrink"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), "/x/y: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), "[Errno 28] No space left on device"),
    ],
)
def test_an_error_of_the_users_is_one_line(error: Exception, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.guarded(lambda: raising(error)) == 2
    assert capsys.readouterr() == ("", f"error: {line}\n")
    assert command.guarded(lambda: raising(error), print_error=False) == 2
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x"), AssertionError(), RuntimeError("x"), MemoryError()])
def test_anything_else_is_a_crash(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    code = command.guarded(lambda: raising(error))
    assert code not in (0, 2)
    said = capsys.readouterr().err
    assert said.startswith("Traceback (most recent call last):")
    assert f"{type(error).__name__}" in said
    assert "this is a fault of Cambium 0." in said.splitlines()[-1]
    assert said.splitlines()[-1].endswith("report it, with the lines above, to whoever gave you Cambium")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.EIO, "Input/output error", "/x"), "error: /x: Input/output error: the machine or its storage"),
        (dist.DistNetworkError("timed out"), "error: this rank has lost the others"),
        (RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:547] closed by peer"), "error: this rank has lost"),
    ],
)
def test_what_a_machine_does_is_nobodys_fault(error: Exception, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A stage that trains is to start again after it."""
    assert command.guarded(lambda: raising(error), (UserError, GrowthError)) not in (0, 2)
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.splitlines()[-1].startswith(line)
    assert "fault of Cambium" not in said


def test_leaving_is_no_crash() -> None:
    for error in (SystemExit(2), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            command.guarded(lambda error=error: raising(error))


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "x", "", "1e3", "9" * 20, "٣"])
def test_a_number_of_things(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nodes", type=command.positive)
    assert parser.parse_args(["--nodes", "12"]).nodes == 12
    with pytest.raises(SystemExit) as left:
        parser.parse_args([f"--nodes={text}"])
    assert left.value.code == 2
    assert "is no whole number from 1 on" in capsys.readouterr().err


def test_every_command_line_has_this_runner() -> None:
    """And no way of its own to read arguments or to turn errors into exit codes."""
    command_lines = [
        path
        for folder in ("pretrain", "tools")
        for path in (ROOT / folder).rglob("*.py")
        if '__name__ == "__main__"' in (text := path.read_text()) and ("import command" in text or "argparse" in text)
    ]
    assert len(command_lines) >= 18
    for path in command_lines:
        text = path.read_text()
        assert re.search(r"command\.(guarded|run)\b", text), f"{path} has a runner of its own"
        assert 'print(f"error: {error}"' not in text, f"{path} says errors by itself"
        # tools/gpu.py says which packages are missing, so its parser needs none.
        assert "ArgumentParser(" not in text or path.name == "gpu.py", path
