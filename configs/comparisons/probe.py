"""What the vectors of a masked language model know without being told: which book of the Bible a passage is of.

Each STAGE is the folder of a finished stage. A passage is a sentence of TEXT, as tools/demo_corpus.py writes it, in one
of the books with the most of them; its vector is that of [CLS] beside the mean over its pieces, of the last layer. A
logistic regression learns from the odd chapters, and is measured on the even ones; passage by passage it is compared
with that of the last STAGE. Beside it is the held-out loss with one share of the pieces masked, whatever a stage was
trained with. DIR gets probe.md.

example:
  python configs/comparisons/probe.py configs/comparisons/distill data/kjv.jsonl runs/comparison-distill/*/
"""

import argparse
import json
import re
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from functools import partial
from math import sqrt
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, logging

from pretrain.checkpoint import Reader, model_of
from pretrain.checkpoint.locate import locate
from pretrain.cli import command
from pretrain.config import stage_from
from pretrain.hf.export import export
from pretrain.report.files import writing
from pretrain.report.markdown import table
from pretrain.verify import audit, pruning

BOOKS, PASSAGES, LENGTH, SHORTEST = 10, 800, 32, 40
"""How many books; the most passages of each; pieces of a passage; characters of a sentence that is one."""
MASKED, SAMPLES = 0.15, 512
"""Share of the pieces that are masked for the held-out loss, and samples of it."""
DECAY = 1e-2
"""Of the weights of the regression."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", type=Path)
    parser.add_argument("text", metavar="TEXT", type=Path)
    parser.add_argument("stages", metavar="STAGE", type=Path, nargs="+")


def work(options: argparse.Namespace) -> command.Answer:
    """Writes the table."""
    logging.set_verbosity_error()
    texts, books, odd = passages(options.text)
    right = {}
    for stage in options.stages:
        known, pieces = vectors(stage, texts)
        right[stage.name] = found_out(known, books, odd)
    counted = float(found_out(pieces, books, odd).mean())
    losses = {stage.name: held_out_loss(stage) for stage in options.stages}
    tested, last = int((~odd).sum()), options.stages[-1].name
    rows = []
    for name, each in right.items():
        low, high = wilson(float(each.mean()), tested)
        more = each - right[last]
        ahead = f"{more.mean():+.1%} ± {1.96 * more.std() / sqrt(tested):.1%}" if name != last else "-"
        rows.append([name, f"{losses[name]:.4f}", f"{each.mean():.1%}", f"{low:.1%} to {high:.1%}", ahead])
    words = table(["model", f"held-out, {MASKED:.0%} masked", "right", "95 %", f"more than {last}"], rows)
    most = int(torch.bincount(books[~odd]).max()) / tested
    note = (
        f"Of {tested} passages of {BOOKS} books, with Wilson's interval of 95 %; always the commonest: {most:.1%}; "
        f"from how often each piece occurs, without a model: {counted:.1%}."
    )
    found = {name: {"right": float(each.mean()), "held_out": losses[name]} for name, each in right.items()}
    with writing(options.folder / "probe.md"):
        options.folder.mkdir(parents=True, exist_ok=True)
        (options.folder / "probe.md").write_text(f"{words}\n\n{note}\n")
    return command.Answer(f"{words}\n{note}", found)


def passages(path: Path) -> tuple[list[str], Tensor, Tensor]:
    """The passages, the number of the book of each, and whether its chapter is odd."""
    rows: list[tuple[str, str, bool]] = []
    for line in path.read_text().splitlines():
        chapter = json.loads(line)
        book, number = chapter["title"].rsplit(" ", 1)
        sentences = re.split(r"(?<=[.?!])\s", chapter["text"])
        rows += [(text, book, int(number) % 2 == 1) for text in sentences if len(text) >= SHORTEST]
    names = [book for book, _ in Counter(book for _, book, _ in rows).most_common(BOOKS)]
    seen: Counter[str] = Counter()
    kept = []
    for row in rows:
        seen[row[1]] += 1
        if row[1] in names and seen[row[1]] <= PASSAGES:
            kept.append(row)
    books = torch.tensor([names.index(book) for _, book, _ in kept])
    return [text for text, _, _ in kept], books, torch.tensor([odd for _, _, odd in kept])


@torch.no_grad()
def vectors(stage: Path, texts: list[str]) -> tuple[Tensor, Tensor]:
    """([passages, 2 hidden], of [CLS] and the mean over the pieces; [passages, vocab], how often each piece occurs)."""
    with tempfile.TemporaryDirectory() as folder:
        export(locate(stage), Path(folder) / "model", shard_bytes=1 << 30)
        model = AutoModel.from_pretrained(Path(folder) / "model").eval()
        tokenizer = AutoTokenizer.from_pretrained(Path(folder) / "model")
    found, pieces = [], []
    for start in range(0, len(texts), 64):
        batch = tokenizer(
            texts[start : start + 64], truncation=True, max_length=LENGTH, padding=True, return_tensors="pt"
        )
        last = model(**batch).last_hidden_state
        valid = batch["attention_mask"][..., None]
        found.append(torch.cat((last[:, 0], (last * valid).sum(1) / valid.sum(1)), dim=-1))
        pieces.append(F.one_hot(batch["input_ids"], len(tokenizer)).mul(valid).sum(1))
    return torch.cat(found), torch.cat(pieces).float()


def held_out_loss(stage: Path) -> float:
    """What training minimises without a teacher, nats, on held-out text with MASKED of the pieces masked."""
    with Reader(locate(stage)) as reader:
        given = stage_from(reader.manifest.config, str(stage))
        feed = audit.open_corpus(replace(given, data=replace(given.data, mask_rate=MASKED, mask_rate_end=0.0)))
        assert feed is not None
        return pruning.held_out_loss(reader.read, model_of(reader.manifest, stage), feed.batch(SAMPLES))


def found_out(vectors: Tensor, books: Tensor, odd: Tensor) -> Tensor:
    """1 for each of the even chapters' passages that a logistic regression on the odd ones' gets right, else 0."""
    x = (vectors - vectors[odd].mean(0)) / vectors[odd].std(0).clamp(min=1e-6)
    weight = torch.zeros(BOOKS, x.shape[1], requires_grad=True)
    bias = torch.zeros(BOOKS, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(x[odd], weight, bias), books[odd]) + DECAY * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return (F.linear(x[~odd], weight, bias).argmax(-1) == books[~odd]).float()


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """The interval of a share of n, of 95 %."""
    middle, half = share + z * z / (2 * n), z * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


main = partial(command.run, __doc__, arguments, work)

if __name__ == "__main__":
    sys.exit(main())
