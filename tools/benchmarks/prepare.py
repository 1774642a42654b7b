"""How fast a pipeline turns text into shards, against the tokenizer alone on the same text in as many processes.

The text is kept by a pipeline's first phase in as many parts as there are workers; its phase `tokens`, and the
tokenizer alone on the same parts, are measured with one process and with more. Rounds alternate.
"""

import argparse
import json
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks.report import Report
from benchmarks.report import spread as quartiles
from pretrain.cli.command import positive
from pretrain.data.tokenizers.train_sentencepiece import train_tokenizer
from pretrain.runtime.forks import spread


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench.py prepare`."""
    parser.add_argument("--text", type=Path, help="JSON lines with the key text (default: the demo's text)")
    parser.add_argument("--vocab", type=positive, default=8000, help="pieces of the tokenizer (default: %(default)s)")
    parser.add_argument("--workers", type=positive, default=2, help="the most processes (default: %(default)s)")
    parser.add_argument("--rounds", type=positive, default=5, help="measured rounds (default: %(default)s)")


def run(options: argparse.Namespace) -> Report:
    """Time both; see the notes of the report for the columns."""
    from pretrain.prepare.run import Executor

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job, texts = _job(folder, options)
        phases = {phase.name: phase for phase in job.phases}
        job.begin()
        Executor(phases["clean"], job.work.work, 1).run()
        tokenizer = job.work.load_tokenizer()
        most: int = options.workers

        def alone(workers: int) -> None:
            processor = tokenizer.processor()

            def encode(part: int, _: Any = None) -> None:
                processor.encode(texts[part::most])

            if workers == 1:
                for part in range(most):
                    encode(part)
            else:
                spread(encode, most, workers, lambda *_: None, lambda _: None)

        def tokens(workers: int) -> None:
            shutil.rmtree(job.work.work / "done/tokens", ignore_errors=True)
            Executor(phases["tokens"], job.work.work, workers).run()

        counts = range(1, most + 1)
        own: dict[int, list[tuple[float, float]]] = {workers: [] for workers in counts}
        times: dict[int, list[tuple[float, float]]] = {workers: [] for workers in counts}
        for _ in range(options.rounds):
            for workers in counts:
                own[workers].append(_timed(partial(alone, workers)))
                times[workers].append(_timed(partial(tokens, workers)))
    size = sum(len(text.encode()) for text in texts) / 1e6
    rows = []
    for workers, rounds in times.items():
        pairs = list(zip(own[workers], rounds, strict=True))
        ratio, low, high = quartiles([single / cpu for (single, _), (cpu, _) in pairs])
        wall = quartiles([first / all_ for (_, first), (_, all_) in zip(times[1], rounds, strict=True)])[0]
        single, cpu = (quartiles([cpu for cpu, _ in each])[0] for each in (own[workers], rounds))
        row = {"workers": workers, "tokenizer": size / single, "pipeline": size / cpu}
        rows.append({**row, "ratio": ratio, "ratio_q1": low, "ratio_q3": high, "speedup": wall})
    return Report(
        "Text made into shards, against the tokenizer alone",
        {"vocab": options.vocab, "megabytes": size, "rounds": options.rounds},
        rows,
        (
            "MB of text a second of CPU time, of all processes together, and the ratio with its quartiles over rounds",
            "speedup: elapsed time with one process over that with so many, which a busy machine hides",
        ),
    )


def _job(folder: Path, options: argparse.Namespace) -> tuple[Any, list[str]]:
    """A pipeline without rules, begun, and its texts."""
    from demo_corpus import chapters

    from pretrain.data.tokenizers.sentencepiece import Tokenizer
    from pretrain.prepare.run import Job

    rows = [json.loads(line) for line in options.text.open()] if options.text else chapters()
    texts = [row["text"] for row in rows if row["text"].strip()]
    for part in range(options.workers):
        lines = [json.dumps({"text": text}) for text in texts[part :: options.workers]]
        (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
    Tokenizer(train_tokenizer(texts, options.vocab), "bench.model").save(folder / "tokenizer")
    pipeline = {
        "output": str(folder / "corpus"),
        "read": {"files": [str(folder / "*.jsonl")]},
        "exact": False,
        "near": {"bands": 0},
        "tokens": {"tokenizer": str(folder / "tokenizer"), "least": 0},
        "tasks": options.workers,
    }
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(pipeline))
    return Job(folder / "pipeline.yaml"), texts


def _timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of CPU time, with that of children that have ended, and elapsed."""
    before, start = _cpu(), time.perf_counter()
    work()
    return _cpu() - before, time.perf_counter() - start


def _cpu() -> float:
    """Not os.times, which counts hundredths of a second."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)
