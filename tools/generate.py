"""Writes text: what the model of a checkpoint, or of an export, goes on with from a prompt.

The reference model computes it on the CPU in fp32, with a cache of keys and values; the whole model is held in memory.
Of a stage that has been trained with a memory the cache is as long as that; an export sees all of the text.
The same seed writes the same text on the same machine.

examples:
  python tools/generate.py runs/demo --prompt "In the beginning"
  python tools/generate.py exports/wide --prompt "Once" --prompt "There was" --tokens 200 --temperature 0.7 --top-k 50
  python tools/generate.py runs/demo/wide --prompt "2 + 2 =" --temperature 0 --json
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path

from pretrain.cli import command
from pretrain.errors import UserError
from pretrain.generate.sampling import Sampling
from pretrain.generate.write import continuation
from pretrain.hf.words import open_model


def arguments(parser: argparse.ArgumentParser) -> None:
    usual = Sampling()
    parser.add_argument("model", type=Path, help="a checkpoint, a stage, a run (its last finished stage), or an export")
    parser.add_argument("--prompt", action="append", help="what it goes on from (may be repeated; default: nothing)")
    parser.add_argument("--tokens", type=command.positive, default=100, help="at most (default: %(default)s)")
    parser.add_argument(
        "--temperature", type=float, default=usual.temperature, help="0: the likeliest token (default: %(default)s)"
    )
    parser.add_argument("--top-k", type=int, default=usual.top_k, help="of so many tokens; 0: of all (the default)")
    parser.add_argument(
        "--top-p", type=float, default=usual.top_p, help="of the likeliest that come to this (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draws for each prompt (default: %(default)s)")
    parser.add_argument("--tokenizer", type=Path, help="as of tools/export_hf.py")


def work(options: argparse.Namespace) -> command.Answer:
    """Raises UserError for a model that is not there or writes no text, and for a prompt that does not fit it."""
    how = _sampling(options)
    model = open_model(options.model, options.tokenizer)
    texts, data = [], []
    for prompt in options.prompt or [""]:
        began, ids = time.monotonic(), model.encode(prompt)
        given = {"tokens": options.tokens, "how": how, "seed": options.seed, "ends": model.ends, "memory": model.memory}
        new = list(continuation(model.read, model.arch, ids, **given))
        seconds = time.monotonic() - began
        text = model.decode([*ids, *new])
        texts.append(text)
        data.append({"prompt": prompt, "text": text, "ids": new, "seconds_per_token": seconds / max(1, len(new))})
    return command.Answer("\n\n".join(texts), {"model": str(model.source), "texts": data})


def _sampling(options: argparse.Namespace) -> Sampling:
    for key, fits, what in (
        ("temperature", 0 <= options.temperature < float("inf"), "0 or more"),
        ("top-k", options.top_k >= 0, "0 or more"),
        ("top-p", 0 < options.top_p <= 1, "more than 0, and 1 at most"),
    ):
        if not fits:
            raise UserError(f"--{key} {getattr(options, key.replace('-', '_'))}: give {what}")
    return Sampling(options.temperature, options.top_k, options.top_p)


main = partial(command.run, __doc__, arguments, work)

if __name__ == "__main__":
    sys.exit(main())
