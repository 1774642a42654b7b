"""What all command lines have in common: help with an example, --json, errors in one line, exit codes.

Exit codes: 0, all is well; 1, a finding of a tool, or a crash; 2, an error of the user's, said in one line, after which
the same command would fail again. A crash is a fault of Cambium, and says so under its traceback.
"""

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch.distributed

from growth.errors import GrowthError
from pretrain.errors import UserError
from pretrain.runtime.documents import finite

USERS = (UserError, GrowthError, OSError)
"""Errors that are not a fault of Cambium: an input that cannot be used, a growth that is impossible, a file that cannot
be read or written."""
CRASH = 1


def guarded(work: Callable[[], int], users: tuple[type[Exception], ...] = USERS, print_error: bool = True) -> int:
    """Does `work`, and returns its exit code or that of what it raises.

    The code is 2 for errors in `users`, with one line on stderr if `print_error`; for anything else it is `CRASH`, with
    the traceback and what to do with it.
    """
    try:
        return work()
    except users as error:
        if print_error:
            print(f"error: {_in_words(error)}", file=sys.stderr)
        return 2
    except Exception as error:
        traceback.print_exc()
        print(_blame(error), file=sys.stderr, flush=True)
        return CRASH


def _in_words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _blame(error: Exception) -> str:
    if isinstance(error, torch.distributed.DistError) or (isinstance(error, RuntimeError) and "/gloo/" in str(error)):
        return "error: this rank has lost the others: what the first that ended says, or its host, is the reason"
    if isinstance(error, OSError):
        return f"error: {_in_words(error)}: the machine or its storage failed; the same command goes on from here"
    try:
        release = version("cambium")
    except PackageNotFoundError:
        release = "of an unknown version"
    return f"this is a fault of Cambium {release}: report it, with the lines above, to whoever gave you Cambium"


def positive(text: str) -> int:
    """The type of an option for a parser: a whole number from 1 on."""
    if not text.isascii() or not text.isdigit() or not int(text[:10]) > 0 or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is no whole number from 1 on")
    return int(text)


def say(text: str) -> None:
    """Prints an answer. Its reader may have closed the pipe when it has seen enough (`| head`)."""
    try:
        print(text, flush=True)
    except BrokenPipeError:  # so that what Python flushes at its exit goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@dataclass(frozen=True)
class Answer:
    """What a tool says: `text` for people, `data` (JSON) for machines. `code` is the exit code: 1 is a finding."""

    text: str
    data: Mapping[str, Any]
    code: int = 0


def to_json(data: Any) -> str:
    """The JSON that a tool prints with --json; null stands for NaN and infinity, which JSON does not have."""
    return json.dumps(finite(data), allow_nan=False)


def make_parser(doc: str, prog: str | None = None, add_help: bool = True) -> argparse.ArgumentParser:
    """A parser as every command line has it.

    doc: the description, and from a line "example:" or "examples:" on what --help ends with.
    """
    description, colon, examples = doc.partition("\nexample")
    return argparse.ArgumentParser(
        prog=prog,
        description=description.strip(),
        epilog=(colon + examples).strip() or None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=add_help,
    )


def run(
    doc: str,
    arguments: Callable[[argparse.ArgumentParser], Any],
    work: Callable[[argparse.Namespace], Answer],
    argv: Sequence[str] | None = None,
) -> int:
    """A command line from its parser to its exit code.

    doc: see `make_parser`. arguments: adds options to the parser; --json is added here. argv: the command line,
    sys.argv by default. See `guarded` for errors.
    """
    parser = make_parser(doc)
    arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    options = parser.parse_args(argv)

    def answered() -> int:
        answer = work(options)
        say(to_json(answer.data) if options.json else answer.text)
        return answer.code

    return guarded(answered)
