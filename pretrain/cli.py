"""What all command-line tools have in common: help with an example, --json, errors in one line, exit codes."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from growth.errors import GrowthError
from pretrain.errors import UserError


@dataclass(frozen=True)
class Answer:
    """What a tool says: `text` for people, `data` (JSON) for machines. `code` is the exit code: 1 is a finding."""

    text: str
    data: Mapping[str, Any]
    code: int = 0


def run(
    doc: str,
    arguments: Callable[[argparse.ArgumentParser], Any],
    work: Callable[[argparse.Namespace], Answer],
    given: Sequence[str] | None = None,
) -> int:
    """A command line from its parser to its exit code.

    doc: the description, and from a line "example:" or "examples:" on what --help ends with. arguments adds to the
    parser; --json is there already. A UserError or GrowthError becomes one line on stderr and exit code 2.
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
    try:
        answer = work(options)
    except (UserError, GrowthError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        print(json.dumps(answer.data) if options.json else answer.text, flush=True)
    except BrokenPipeError:  # `| head` has seen enough; what Python flushes at its exit goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return answer.code
