"""Writes problems of mathematics with their answers, by reasoning-gym, as JSON lines: text for tests and comparisons.

A document has problems of one kind; which ones follows from the seed alone. It needs the extra `maths` (pip install
'cambium[maths]'), of which a part is compiled as it is installed, by a C compiler with Python's headers.

example:
  python tools/maths_corpus.py data/problems.jsonl --documents 2000
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

from pretrain.cli import command
from pretrain.errors import UserError
from pretrain.report.files import writing

KINDS = (
    *("basic_arithmetic", "chain_sum", "decimal_arithmetic", "fraction_simplification", "gcd", "lcm"),
    *("leg_counting", "number_sequence", "polynomial_equations", "prime_factorization", "products"),
    *("simple_equations", "simple_integration", "time_intervals"),
)
TOGETHER = 12  # problems of a document


def document(kind: str, seed: int) -> str:
    """Problems of a kind and their answers. Raises UserError where reasoning-gym is not installed."""
    try:
        import reasoning_gym
    except ImportError as error:
        raise UserError(f"reasoning-gym cannot be had ({error}): pip install 'cambium[maths]'") from error
    problems = reasoning_gym.create_dataset(kind, size=TOGETHER, seed=seed)
    return "\n\n".join(f"{problem['question'].strip()}\nAnswer: {problem['answer']}" for problem in problems)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=Path, help="JSON lines file to write (replaced if it exists)")
    parser.add_argument("--documents", type=command.positive, default=1000, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")


def work(options: argparse.Namespace) -> command.Answer:
    """Raises UserError where reasoning-gym is not installed."""
    size = 0
    with writing(options.output), open(options.output, "w", encoding="utf-8") as out:
        for number in range(options.documents):
            kind = KINDS[number % len(KINDS)]
            text = document(kind, options.seed * options.documents + number)
            print(json.dumps({"title": f"{kind}, {number}", "text": text}, ensure_ascii=False), file=out)
            size += len(text.encode())
    answer = f"{options.output}: {options.documents:,} documents, {size:,} bytes of text"
    return command.Answer(answer, {"documents": options.documents, "bytes": size})


main = partial(command.run, __doc__, arguments, work)

if __name__ == "__main__":
    sys.exit(main())
