"""A pipeline on 200 MB of real text with planted duplicates: recall and precision against all pairs compared, and the
same bytes after twenty kills at random moments."""

import json
import os
import random
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import xxhash
import yaml
from numpy.typing import NDArray

from pretrain.data.tokenizers.sentencepiece import Tokenizer
from pretrain.data.tokenizers.train_sentencepiece import train_tokenizer
from pretrain.prepare.run import Executor, Job
from tests.faults import killing
from tests.unit.pretrain.prepare.planted import Copy, jaccard, plant, shingles

TEXT = 200_000_000  # bytes
SIMILAR, EACH = (1.0, 0.9, 0.7, 0.5), 300
FILES, TASKS, WORKERS, KILLS = 40, 40, 2, 20
ROOTS = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")]
ROOTS += [Path("/usr/share/doc"), Path("/usr/share/perl")]
KINDS = {".txt", ".rst", ".md", ".html", ".pod", ".py", ".pyi", ".h", ".hpp", ".c", ".js", ".css"}
BANDS, ROWS = 14, 8  # as they are by default

pytestmark = [pytest.mark.long, pytest.mark.timeout(4 * 3600)]


def pieces() -> Iterator[str]:
    """Documentation and code of what is installed, in pieces of 2,000 to 6,000 letters that end with a paragraph."""
    draw, seen = random.Random(1), set()
    for file in chain.from_iterable(sorted(root.rglob("*")) for root in ROOTS):
        name = file.resolve()
        if file.suffix not in KINDS or name in seen or not name.is_file() or name.stat().st_size > 3_000_000:
            continue
        seen.add(name)
        part, size, wanted = [], 0, draw.randrange(2000, 6000)
        for paragraph in name.read_text(encoding="utf-8", errors="replace").split("\n\n"):
            part.append(paragraph)
            size += len(paragraph)
            if size >= wanted:
                yield "\n\n".join(part).strip()
                part, size, wanted = [], 0, draw.randrange(2000, 6000)
        if size > 1000:
            yield "\n\n".join(part).strip()


def real_text() -> list[str]:
    """`TEXT` bytes of it, or as much as there is."""
    texts, size = [], 0
    for piece in pieces():
        texts.append(piece)
        size += len(piece.encode())
        if size > TEXT:
            break
    return texts


def write(folder: Path, texts: list[str]) -> tuple[Path, Path]:
    """The texts in files, and two pipelines that differ in their output."""
    for number in range(FILES):
        lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts[number::FILES]]
        (folder / f"text-{number:02}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    Tokenizer(train_tokenizer(texts[:3000], 8000), "test.model").save(folder / "tokenizer")
    made = []
    for name in ("whole", "killed"):
        pipeline = {
            "output": str(folder / name),
            "read": {"files": [str(folder / "text-*.jsonl")]},
            "tokens": {"tokenizer": str(folder / "tokenizer"), "least": 0},
            "tasks": TASKS,
        }
        made.append(folder / f"{name}.yaml")
        made[-1].write_text(yaml.safe_dump(pipeline))
    return made[0], made[1]


def run_whole(file: Path, texts: list[str]) -> list[bool]:
    """Makes the corpus; gives for each text whether it was left out as a duplicate."""
    job = Job(file)
    job.begin()
    for phase in job.phases:
        start = time.monotonic()
        Executor(phase, job.work.work, WORKERS).run()
        print(f"  {phase.name}: {time.monotonic() - start:.1f} s", flush=True)
    places: dict[str, list[int]] = {}
    for number, text in enumerate(texts):
        places.setdefault(text, []).append(number)
    gone = [True] * len(texts)
    for rank in range(TASKS):
        documents = None
        for step in job.work._left():
            documents = step.run(documents, rank, TASKS)
        for document in documents:
            gone[places[document.text].pop()] = False
    job.finish()
    return gone


def alike(texts: list[str], least: float) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """All pairs of at least this similarity, and it: each text is compared with all that share a shingle with it."""
    sets = [np.fromiter({hash(shingle) for shingle in shingles(text)}, np.int64) for text in texts]
    sizes = np.array([len(each) for each in sets])
    every, owner = np.concatenate(sets), np.repeat(np.arange(len(sets), dtype=np.int32), sizes)
    order = np.argsort(every, kind="stable")
    every, owner = every[order], owner[order]
    begins = np.flatnonzero(np.r_[True, every[1:] != every[:-1]])
    ends, different = np.r_[begins[1:], len(every)], every[begins]
    first, second, similarity = [], [], []
    for number, each in enumerate(sets):
        at = np.searchsorted(different, each)
        at = at[ends[at] - begins[at] > 1]
        if not len(at):
            continue
        lengths = ends[at] - begins[at]
        places = np.repeat(begins[at] - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
        shared = np.bincount(owner[places])
        others = np.flatnonzero(shared[number + 1 :]) + number + 1
        alikeness = shared[others] / (sizes[number] + sizes[others] - shared[others])
        enough = alikeness >= least
        first.append(np.full(enough.sum(), number))
        second.append(others[enough])
        similarity.append(alikeness[enough])
    return np.concatenate(first), np.concatenate(second), np.concatenate(similarity)


def agree(similarity: NDArray[np.float64]) -> float:
    """The share of pairs of which MinHash finds that they are alike, by its theory."""
    return float(np.mean(1 - (1 - similarity**ROWS) ** BANDS))


def judge(texts: list[str], copies: list[Copy], gone: NDArray[np.bool_]) -> None:
    """Prints recall and precision, and holds them to the theory."""
    first, second, similarity = alike(texts, 0.3)
    hit = gone[first] | gone[second]
    print("\nall pairs: how alike, how many, of one of both it is left out; MinHash alone finds")
    for low in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        band = (similarity >= low) & (similarity < (low + 0.1 if low < 0.9 else 2))
        if band.any():
            found = f"{band.sum():7} {hit[band].mean():.4f} {agree(similarity[band]):.4f}"
            print(f"  {low:.1f} to {low + 0.1:.1f} {found}")
    best = np.zeros(len(texts))
    np.maximum.at(best, first, similarity)
    np.maximum.at(best, second, similarity)
    recall = {least: hit[similarity >= least].mean() for least in (0.7, 0.8, 0.9)}
    precision = {least: (best[gone] >= least).mean() for least in (0.5, 0.6, 0.7)}
    print("recall of pairs at least so alike:", {key: round(float(value), 4) for key, value in recall.items()})
    print(f"precision: of {gone.sum()} left out, the share with another that is at least so alike:", end=" ")
    print({key: round(float(value), 4) for key, value in precision.items()})
    print("planted: wanted, is, how many, left out, in theory")
    for wanted in SIMILAR:
        pairs = [(copy.of, copy.number) for copy in copies if copy.wanted == wanted]
        real = np.array([jaccard(shingles(texts[a]), shingles(texts[b])) for a, b in pairs])
        found = np.mean([gone[a] or gone[b] for a, b in pairs])
        print(f"  {wanted} {real.mean():.4f} {len(pairs)} {found:.4f} {agree(real):.4f}")
        # Originals are left out for other texts that they are like, too; else this is a binomial draw.
        assert found >= agree(real) - 4 * (0.25 / len(pairs)) ** 0.5
    assert recall[0.9] >= 0.999
    assert precision[0.5] >= 0.95


def digests(folder: Path) -> dict[str, str]:
    """The hash of each file of a corpus."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return {str(file.relative_to(folder)): xxhash.xxh3_128_hexdigest(file.read_bytes()) for file in files}


def kill_and_repeat(file: Path, output: Path, seconds: float, expected: dict[str, str]) -> None:
    """Kills the preparation twenty times, at moments that are spread over as many seconds as it takes, then lets it
    end: each time it is begun again and goes on."""
    draw = random.Random(killing.base_seed())
    command = [sys.executable, "-m", "pretrain.cli.preparation", str(file), "--workers", str(WORKERS)]
    log = file.with_suffix(".log")
    for number in range(KILLS):
        wait = draw.uniform(0, 2 * seconds / KILLS)
        with open(log, "w") as said, subprocess.Popen(command, stdout=said, stderr=said) as process:
            try:
                assert process.wait(wait) == 0, log.read_text()
                moment = "had ended"
                assert digests(output) == expected
            except subprocess.TimeoutExpired:
                process.kill()
                moment = f"killed in {(log.read_text().splitlines() or ['its start'])[-1]}"
        print(f"  {number + 1}: {moment} after {wait:.1f} s", flush=True)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert digests(output) == expected
    print("the same bytes in", len(expected), "files")


def test_200_mb(tmp_path: Path) -> None:
    """See above."""
    texts, copies = plant(real_text(), SIMILAR, EACH)
    print(f"\n{len(texts)} documents, {sum(len(text.encode()) for text in texts):,} bytes")
    order = random.Random(2).sample(range(len(texts)), len(texts))
    place = {old: new for new, old in enumerate(order)}
    texts = [texts[old] for old in order]
    copies = [Copy(place[copy.of], place[copy.number], copy.wanted) for copy in copies]
    whole, killed = write(tmp_path, texts)
    start = time.monotonic()
    gone = run_whole(whole, texts)
    seconds = time.monotonic() - start
    judge(texts, copies, np.array(gone))
    kill_and_repeat(killed, tmp_path / "killed", seconds, digests(tmp_path / "whole"))
    assert not list(tmp_path.glob("*.partial")), os.listdir(tmp_path)
