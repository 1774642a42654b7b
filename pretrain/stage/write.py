"""Text that the model of a stage writes while it is trained, at validations: for people to look at."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import torch

from pretrain.data.tokenizers.wordpiece import WordPiece
from pretrain.engine.engine import Engine
from pretrain.families.common.text import Feed
from pretrain.generate.sampling import Sampling, choose
from pretrain.runtime.comm import Comm
from pretrain.runtime.files import write_file
from pretrain.runtime.ranks import is_first
from pretrain.schedule.progress import Progress

log = logging.getLogger(__name__)

FILE = "samples.jsonl"
UNIT = 64  # tokens, to a multiple of which a text is padded: tensor-parallel ranks hold equal parts of it


def is_due(feed: Feed, progress: Progress, spent: bool) -> bool:
    """Whether the validation at this step comes with a text; that at the end of a stage does."""
    wanted, every = feed.stage.log.samples, feed.stage.train.eval_interval
    return bool(wanted.prompt) and (spent or progress.step // every % wanted.interval == 0)


def forget(folder: Path, step: int) -> None:
    """Drops the texts from this step on, at which a stage starts again: they are written anew. So is a line that a kill
    cut off."""
    path = folder / FILE
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        write_file(path, "".join(line for line in lines if line.endswith("\n") and _step(line) < step).encode())


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return sys.maxsize


def write(engine: Engine, feed: Feed, progress: Progress, folder: Path) -> None:
    """Go on from the prompt of `log.samples`, and keep the text in the stage's folder (collective).

    A token takes a forward pass of a micro-batch under the stage's own layout. Drawn by the step's number: what is
    trained does not depend on it.
    """
    wanted, tokenizer, vocab = feed.stage.log.samples, feed.tokenizer, engine.arch.sizes["vocab"]
    assert not isinstance(tokenizer, WordPiece)  # `Feed.check` has refused its models
    ids = [tokenizer.eos, *tokenizer.encode(wanted.prompt, vocab).tolist()]
    length = min(engine.seq_len, -(-(len(ids) + wanted.tokens) // UNIT) * UNIT)
    draw, rows = torch.Generator().manual_seed(progress.step), engine.micro_batch * engine.layout.pp
    for _ in range(min(wanted.tokens, length - len(ids))):
        inputs = torch.full((rows, length), tokenizer.eos, dtype=torch.int64)
        inputs[:, : len(ids)] = torch.tensor(ids)
        logits = engine.logits({"inputs": inputs})
        chosen = -1  # of a rank without logits
        if logits is not None:
            chosen = choose(logits[0, len(ids) - 1, : tokenizer.size], Sampling(), draw)
        chosen = Comm().largest(chosen)
        if chosen == tokenizer.eos:
            break
        ids.append(chosen)
    if is_first():
        text = tokenizer.decode(ids[1:])
        log.info("at step %d it writes: %s", progress.step, text)
        with (folder / FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": progress.step, "tokens": progress.tokens, "text": text}) + "\n")
