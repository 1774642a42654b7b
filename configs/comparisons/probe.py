"""What the vectors of a masked language model know without being told: which book of the Bible a passage is of.

Each STAGE is the folder of a finished stage. A passage is the beginning of a paragraph of TEXT, as tools/demo_corpus.py
writes it, in one of the books with the most of them; its vector is that of [CLS] beside the mean over its pieces, of
the last layer. A logistic regression learns from the odd chapters, and is measured on the even ones. DIR gets probe.md.

example:
  python configs/comparisons/probe.py configs/comparisons/distill data/kjv.jsonl runs/comparison-distill/*/
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from functools import partial
from math import sqrt
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, logging

from pretrain.checkpoint.locate import locate
from pretrain.cli import command
from pretrain.hf.export import export
from pretrain.report.files import writing
from pretrain.report.markdown import table

BOOKS, PASSAGES, LENGTH = 10, 400, 32
"""How many books; the most passages of each; pieces of a passage."""
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
    found = {stage.name: accuracy(vectors(stage, texts), books, odd) for stage in options.stages}
    tested = int((~odd).sum())
    rows = [[name, f"{share:.1%}", *(f"{end:.1%}" for end in wilson(share, tested))] for name, share in found.items()]
    words = table(["model", "right", "from", "to"], rows)
    most = int(torch.bincount(books[~odd]).max()) / tested
    note = f"Of {tested} passages of {BOOKS} books, with Wilson's interval of 95 %; always the commonest: {most:.1%}."
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
        rows += [(text, book, int(number) % 2 == 1) for text in chapter["text"].split("\n") if text.strip()]
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
def vectors(stage: Path, texts: list[str]) -> Tensor:
    """[passages, 2 hidden]: of [CLS], and the mean over the pieces."""
    with tempfile.TemporaryDirectory() as folder:
        export(locate(stage), Path(folder) / "model", shard_bytes=1 << 30)
        model = AutoModel.from_pretrained(Path(folder) / "model").eval()
        tokenizer = AutoTokenizer.from_pretrained(Path(folder) / "model")
    found = []
    for start in range(0, len(texts), 64):
        batch = tokenizer(
            texts[start : start + 64], truncation=True, max_length=LENGTH, padding=True, return_tensors="pt"
        )
        last = model(**batch).last_hidden_state
        valid = batch["attention_mask"][..., None]
        found.append(torch.cat((last[:, 0], (last * valid).sum(1) / valid.sum(1)), dim=-1))
    return torch.cat(found)


def accuracy(vectors: Tensor, books: Tensor, odd: Tensor) -> float:
    """The share of the even chapters' passages that a logistic regression on the odd ones' gets right."""
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
    return float((F.linear(x[~odd], weight, bias).argmax(-1) == books[~odd]).float().mean())


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """The interval of a share of n, of 95 %."""
    middle, half = share + z * z / (2 * n), z * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


main = partial(command.run, __doc__, arguments, work)

if __name__ == "__main__":
    sys.exit(main())
