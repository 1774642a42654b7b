"""Curricula that are run by the command line alone, what they wrote, and its comparison with what was recorded.

Nothing of Cambium is imported here: commands, curricula and the files of a run stay as they are when the code behind
them moves.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
LOSSES = HERE / "losses.json"
EARLIER = HERE / "earlier"
FAMILIES = ("llama2", "bert")
EXPECTED = "expected.json"  # in a folder of an earlier run
HALF = 5  # the step after which it was stopped

STEPS, BATCH = 20, 2  # of each stage of the demo: optimizer steps, and samples in one
CHAPTERS = 60  # of the Bible, 237 kB
SIZES = {"kjv": 4096, "bert": 800}  # of the corpora's vocabularies
STAGES = {"demo": ("seed", "wide", "deep"), "bert": ("small", "large")}

FIGURES = ("loss", "grad_norm", "validation_loss")  # of metrics.jsonl
KINDS = ("weight", "exp_avg", "exp_avg_sq")
PACKAGES = ("torch", "megatron-core", "deepspeed", "numpy", "numba", "sentencepiece", "tokenizers")
IDENTITY = ("vendor_id", "cpu family", "model", "model name", "cache size", "CPU implementer", "CPU part")
FEATURES = ("avx", "amx", "fma", "asimd", "sve")
TIMEOUT = 540  # seconds for all commands of a test, however busy the machine is

TOLERANCES = {"demo/seed": (1e-5, 1e-3), "demo/wide": (1e-3, 5e-2), "demo/deep": (1e-3, 1e-1)}
"""How far losses and gradient norms may lie from a record of another kind of processor, relatively: at least five times
what they were apart between AVX-512 and AVX2. Sums are rounded in another order there, and where a second moment is
tiny, as that of a parameter which is new, Adam makes a step of full length out of the rounding of its gradient."""
OTHERWISE = (1e-6, 1e-6)
"""Of the small models, which come no further apart than fp32 rounds."""


def every_stage() -> list[tuple[str, str]]:
    """The names of run and stage, in order."""
    return [(run, stage) for run, stages in STAGES.items() for stage in stages]


def demo(folder: Path) -> None:
    """Writes configs/demo.yaml there with small budgets: a smaller batch, and as many tokens as STEPS need.

    The warm-up stays the same share of a stage. All else (shapes, layouts, rates, lengths) is the demo's.
    """
    found = yaml.safe_load((ROOT / "configs/demo.yaml").read_text())
    found["output"] = "runs"
    found["data"]["corpus"] = "kjv"
    found["train"] |= {"global_batch": BATCH, "micro_batch": 1, "eval_bytes": 4096}
    found["log"] = {"interval": 1, "wandb": False}
    tokens = STEPS * BATCH * found["train"]["seq_len"]
    for stage in found["stages"]:
        train = stage["train"]
        train["warmup_tokens"] = round(train["warmup_tokens"] / train["tokens"] * tokens)
        train["tokens"] = tokens
    (folder / "demo.yaml").write_text(yaml.safe_dump(found, sort_keys=False))


def train_all(folder: Path) -> None:
    """Prepares the corpora and trains every stage of the demo and of bert.yaml, in this folder."""
    demo(folder)
    (folder / "bert.yaml").write_text((HERE / "bert.yaml").read_text())
    python(folder, str(ROOT / "tools/demo_corpus.py"), "kjv.jsonl")
    chapters = (folder / "kjv.jsonl").read_text().splitlines(keepends=True)[:CHAPTERS]
    (folder / "text.jsonl").write_text("".join(chapters))
    prepare = (ROOT / "tools/prepare_data.py", "text.jsonl", "--vocab-size")
    commands = [
        _command(*prepare, SIZES["kjv"], "--output", "kjv"),
        _command(*prepare, SIZES["bert"], "--output", "bert", "--wordpiece"),
    ]
    for run, names in STAGES.items():
        stages = {stage["name"]: stage for stage in yaml.safe_load((folder / f"{run}.yaml").read_text())["stages"]}
        for name in names:
            layout = stages[name].get("parallel", {})
            ranks = math.prod(layout.get(axis, 1) for axis in ("tp", "pp", "dp"))
            commands.append(_command("-m", "pretrain", f"{run}.yaml", "--stage", name, ranks=ranks))
    start(folder, commands)


def go_on(family: str, folder: Path) -> dict[str, Any]:
    """Copies the earlier run of a family there, resumes its first stage and grows the second from its end.

    Gives what both wrote; of the first, what it wrote since the resume. AssertionError if it began from nothing.
    """
    shutil.copytree(EARLIER / family, folder)
    run = folder / "runs/earlier"
    before = (run / "small/metrics.jsonl").read_text()
    start(folder, [_command("-m", "pretrain", "curriculum.yaml", "--stage", stage) for stage in ("small", "large")])
    assert (run / "small/metrics.jsonl").read_text().startswith(before), "the first stage did not go on, but began anew"
    return {"small": written(run / "small", after=HALF), "large": written(run / "large")}


def make_earlier(family: str) -> None:
    """Makes the earlier run of a family anew: its first stage, as it was half-way, by the code of today."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(EARLIER / family / "curriculum.yaml", folder)
        python(folder, str(ROOT / "tools/demo_corpus.py"), "kjv.jsonl")
        chapters = [json.loads(line)["text"] for line in (folder / "kjv.jsonl").read_text().splitlines()[:4]]
        paragraphs = [paragraph for chapter in chapters for paragraph in chapter.split("\n")]
        (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in paragraphs))
        options = {"llama2": ["--vocab-size", 360], "bert": ["--vocab-size", 200, "--wordpiece"]}[family]
        prepare = _command(ROOT / "tools/prepare_data.py", "text.jsonl", "--output", "corpus", *options)
        # By two ranks where that is possible, so that tensors lie in boxes of which one process then makes whole ones.
        ranks = {"llama2": 2, "bert": 1}[family]
        changes = ("--parallel.dp", ranks, "--checkpoint.keep", 9)
        train = _command("-m", "pretrain", "curriculum.yaml", "--stage", "small", *changes, ranks=ranks)
        start(folder, [prepare, train])
        stage, kept = folder / "runs/earlier/small", EARLIER / family
        for part in ("corpus", "runs"):
            shutil.rmtree(kept / part, ignore_errors=True)
        shutil.copytree(folder / "corpus", kept / "corpus")
        checkpoint = f"checkpoints/step-{HALF:08}"
        own = kept / stage.relative_to(folder)
        shutil.copytree(stage / checkpoint, own / checkpoint)
        shutil.copy(stage / "config.yaml", own)
        records = (stage / "metrics.jsonl").read_text().splitlines(keepends=True)
        (own / "metrics.jsonl").write_text("".join(line for line in records if json.loads(line)["step"] <= HALF))


def _command(*words: object, ranks: int = 1) -> dict[str, Any]:
    return {"words": [str(word) for word in words], "ranks": ranks}


def start(folder: Path, commands: Sequence[Mapping[str, Any]]) -> None:
    """Runs the commands by the starter; see there. AssertionError with all that they said if one of them fails."""
    program = ["-W", "ignore", "-m", "tests.golden.starter", str(folder)]
    _run(program, ROOT, json.dumps(commands))


def python(folder: Path, *words: str) -> None:
    """Runs `python WORDS` in the folder, as a user does."""
    _run(words, folder)


def _run(words: Sequence[str], folder: Path, given: str = "") -> None:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    options = dict(cwd=folder, env=environment, start_new_session=True)
    with subprocess.Popen([sys.executable, *words], **pipes, **options) as process:
        try:
            said, _ = process.communicate(given, timeout=TIMEOUT)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # its ranks too
            raise
    assert process.returncode == 0, f"python {' '.join(words)} ended with {process.returncode}:\n{said}"


def written(stage: Path, after: int = -1) -> dict[str, Any]:
    """What the folder of a stage says of its steps after one of them, and of its last checkpoint.

    Figures are in hexadecimal, so that no bit is lost; the bytes of the tensors of each kind are one SHA-256.
    """
    records = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    found: dict[str, Any] = {
        figure: [float(r[figure]).hex() for r in records if figure in r and r["step"] > after] for figure in FIGURES
    }
    newest = max((stage / "checkpoints").glob("step-*"))
    return {**found, "tensors": {kind: _digest(sorted(newest.glob(f"{kind}-*.safetensors"))) for kind in KINDS}}


def _digest(files: Iterable[Path]) -> str:
    """Of the names and bytes of what lies in tensor files, wherever it lies in them."""
    entries = {name: value for path in files for name, value in load_file(path).items()}
    digest = hashlib.sha256()
    for name in sorted(entries):
        digest.update(name.encode() + entries[name].tobytes())
    return digest.hexdigest()


def corpora(folder: Path) -> dict[str, str]:
    """The SHA-256 of the tokens of each corpus that `train_all` has prepared."""
    return {name: hashlib.sha256((folder / name / "tokens.bin").read_bytes()).hexdigest() for name in SIZES}


def machine() -> dict[str, Any]:
    """What decides about the last bits of a figure: the versions, and the kind of processor."""
    found: dict[str, Any] = {"machine": platform.machine(), "instructions": torch.backends.cpu.get_cpu_capability()}
    about = Path("/proc/cpuinfo")
    if about.exists():
        lines = (line.partition(":") for line in about.read_text().partition("\n\n")[0].splitlines())
        facts = {key.strip(): value.strip() for key, _, value in lines}
        found |= {key: facts[key] for key in IDENTITY if key in facts}
        features = facts.get("flags", facts.get("Features", "")).split()
        found["features"] = sorted(feature for feature in features if feature.startswith(FEATURES))
    return {"versions": {name: version(name) for name in PACKAGES}, "processor": found}


def compare(recorded: Mapping[str, Any], name: str, found: Mapping[str, Any]) -> None:
    """Holds what a stage wrote to what was recorded of it; AssertionError with the first value of each figure that is
    another one.

    Where versions and processor are those of the record, that is every bit, tensors included. Where they are not, a
    warning says so, and figures are compared within TOLERANCES.
    """
    expected = recorded["stages"][name]
    others = [
        f"{key} is {now.get(key)} here, and was {before.get(key)}"
        for part, now in machine().items()
        for before in [recorded[part]]
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]
    of_losses, of_norms = TOLERANCES.get(name, OTHERWISE) if others else (0.0, 0.0)
    tolerances = {"loss": of_losses, "validation_loss": of_losses, "grad_norm": of_norms}
    problems = [
        line
        for figure, tolerance in tolerances.items()
        for line in _apart(figure, expected[figure], found[figure], tolerance)
    ]
    if others:
        within = f"losses to {of_losses:.0e} and gradient norms to {of_norms:.0e}, its tensors not at all"
        warnings.warn(f"{name} is not compared bit for bit, but {within}: {'; '.join(others)}", stacklevel=2)
    else:
        problems += [f"{kind}: other bits" for kind in KINDS if found["tensors"][kind] != expected["tensors"][kind]]
    assert not problems, "\n".join([f"{name} is not what was recorded (see python -m tests.golden.record)", *problems])


def _apart(figure: str, expected: Sequence[str], found: Sequence[str], tolerance: float) -> Iterator[str]:
    """The first of the values that are further apart than this, relatively."""
    for number, (one, other) in enumerate(zip_longest(expected, found), 1):
        if one is None or other is None:
            yield f"{figure}: {len(found)} values, and {len(expected)} recorded"
            return
        before, now = float.fromhex(one), float.fromhex(other)
        if not abs(now - before) <= tolerance * abs(before):
            yield f"{figure}, value {number}: {now!r}, recorded {before!r}, {abs(now - before):.1e} apart"
            return
