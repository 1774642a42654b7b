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
"""What is not a fault of Cambium: an input that cannot be used, a growth that is impossible, a file that cannot be
read or written."""
CRASH = 1


def guarded(work: Callable[[], int], users: tuple[type[Exception], ...] = USERS, said: bool = True) -> int:
    """The exit code of `work`, or of what it raises: 2 for `users`, with one line on stderr if it is to be `said`; for
    anything else `CRASH`, with the traceback and what to do with it."""
    try:
        return work()
    except users as error:
        if said:
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
        mine = version("cambium")
    except PackageNotFoundError:
        mine = "of an unknown version"
    return f"this is a fault of Cambium {mine}: report it, with the lines above, to whoever gave you Cambium"


def positive(text: str) -> int:
    """A number of things of which there is at least one, for a parser."""
    if not text.isascii() or not text.isdigit() or not int(text[:10]) > 0 or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is no whole number from 1 on")
    return int(text)


def say(text: str) -> None:
    """Prints an answer, of which whoever reads it may have seen enough (`| head`)."""
    try:
        print(text, flush=True)
    except BrokenPipeError:  # what Python flushes at its exit goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@dataclass(frozen=True)
class Answer:
    """What a tool says: `text` for people, `data` (JSON) for machines. `code` is the exit code: 1 is a finding."""

    text: str
    data: Mapping[str, Any]
    code: int = 0


def to_json(data: Any) -> str:
    """What a tool prints with --json: JSON has no NaN and no infinity, and null stands for them."""
    return json.dumps(finite(data), allow_nan=False)


def run(
    doc: str,
    arguments: Callable[[argparse.ArgumentParser], Any],
    work: Callable[[argparse.Namespace], Answer],
    given: Sequence[str] | None = None,
) -> int:
    """A command line from its parser to its exit code.

    doc: the description, and from a line "example:" or "examples:" on what --help ends with. arguments adds to the
    parser; --json is there already. See `guarded` for errors.
    """
    description, colon, examples = doc.partition("\nexample")
    parser = argparse.ArgumentParser(
        description=description.strip(),
        epilog=(colon + examples).strip() or None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    options = parser.parse_args(given)

    def answered() -> int:
        answer = work(options)
        say(to_json(answer.data) if options.json else answer.text)
        return answer.code

    return guarded(answered)
