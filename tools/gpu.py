"""Says in a few minutes whether this stack is fit for the GPU of this machine; needs no network.

Three parts: the tests that need a GPU; a curriculum of three stages with growth, from drawn text to an export; and
`bench.py gpu`. Each is ended when its time is over, and the next goes on. OUTPUT gets gpu.md, gpu.json and the logs.
Exit code 1 when a part failed, 2 when something is missing here. docs/gpu.md says how to bring what is missing.

examples:
  python tools/gpu.py --minutes 8 --output runs/gpu
  python tools/gpu.py --tiny                     tries the script itself, on a CPU
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).parents[1]
NEEDED = (
    *("numba", "numpy", "protobuf", "pyyaml", "safetensors", "sentencepiece", "tokenizers", "torch", "transformers"),
    *("megatron-core", "packaging", "tqdm", "xxhash"),
    *("deepspeed", "einops", "hjson", "msgpack", "ninja", "psutil", "py-cpuinfo"),
    *("pydantic", "annotated-types", "pydantic-core", "typing-extensions", "typing-inspection"),
    *("tyro", "docstring-parser", "typeguard"),
    *("hypothesis", "pytest", "pytest-timeout"),
)
"""The packages that this script needs, which are not all that Cambium needs."""
OLDEST, NEWEST = (3, 11), (3, 13)  # versions of Python
FIRST = 0.36  # share of the time that the tests and, at the same time, the curriculum have
RESERVE = 12.0  # seconds that are kept for writing the results


def missing() -> list[str]:
    """The packages that are not installed."""
    return [name for name in NEEDED if not _has(name)]


def _has(package: str) -> bool:
    try:
        return bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False


def fault(tiny: bool) -> str:
    """Why this script cannot work here, in one line; empty if it can."""
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        return (
            f"Python {OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]} is needed, and this is {sys.version.split()[0]}"
        )
    if absent := missing():
        return f"not installed: {', '.join(absent)}; docs/gpu.md says how to bring them along"
    import torch

    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9):
        return f"torch 2.9 or newer is needed, and this is {torch.__version__}"
    if not tiny and not torch.cuda.is_available():
        return "there is no CUDA device (--tiny tries the script without one)"
    return ""


@dataclass
class Part:
    """A command that runs in a process group of its own and writes to a log."""

    name: str
    command: list[str]
    log: Path
    environment: dict[str, str]
    began: float = field(default_factory=time.monotonic)
    code: int | None = None

    def __post_init__(self) -> None:
        self.file = self.log.open("wb")
        self.process = subprocess.Popen(
            self.command,
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=self.file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def end(self, deadline: float) -> None:
        """Waits for the command until `deadline`, by the monotonic clock, then asks it to end, and at last kills it."""
        with suppress(subprocess.TimeoutExpired):
            self.code = self.process.wait(max(0.0, deadline - time.monotonic()))
        if self.code is None:
            self.kill(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(RESERVE / 3)
        self.kill(signal.SIGKILL)
        self.process.wait()
        self.file.close()
        self.seconds = time.monotonic() - self.began

    def kill(self, number: signal.Signals) -> None:
        """Sends a signal to all processes of the command."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    @property
    def outcome(self) -> str:
        """How the command ended, in one line for people."""
        lines = self.log.read_text(errors="replace").strip().splitlines() or [""]
        how = "took too long and was ended" if self.code is None else "passed" if self.code == 0 else "FAILED"
        return f"{self.name}: {how} after {self.seconds:.0f} s; {lines[-1].strip('= ')[:200]}"


def run(options: argparse.Namespace) -> int:
    """Runs all parts and returns the exit code."""
    out: Path = options.output.resolve()
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    end = began + 60 * options.minutes - RESERVE
    first = began + FIRST * 60 * options.minutes
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHON": sys.executable,
        "PYTHONUNBUFFERED": "1",
        "WANDB_MODE": "offline",
        "HF_HUB_OFFLINE": "1",
    }
    if options.tiny:
        environment["CUDA_TESTS_ON_CPU"] = "1"
    python, parts = sys.executable, list[Part]()
    before = signal.signal(signal.SIGTERM, _stop)
    work = tempfile.mkdtemp(prefix="cambium-gpu-")
    bench = ["--minutes", "0", "--output", str(out), *(["--tiny"] if options.tiny else [])]
    tests = ["-m", "pytest", "-n", "0", "-m", "cuda", "-q", "-rfE", "--tb", "short", "-p", "no:cacheprovider"]
    try:
        parts.append(Part("tests", [python, *tests, "tests/cuda"], out / "tests.log", environment))
        parts.append(Part("curriculum", [python, __file__, "--curriculum", work], out / "curriculum.log", environment))
        _wait(parts, first)
        bench[1] = str((end - time.monotonic()) / 60)
        parts.append(Part("bench", [python, "tools/bench.py", "gpu", *bench], out / "bench.log", environment))
        _wait(parts[-1:], end + RESERVE / 2)
    except KeyboardInterrupt:
        _wait([part for part in parts if part.code is None], 0.0)
    finally:
        signal.signal(signal.SIGTERM, before)
        shutil.rmtree(work, ignore_errors=True)
    return _summarise(out, parts, time.monotonic() - began)


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _wait(parts: Sequence[Part], deadline: float) -> None:
    for part in parts:
        part.end(deadline)
        print(part.outcome, flush=True)


def _summarise(out: Path, parts: Sequence[Part], seconds: float) -> int:
    lines = [f"- {part.outcome}" for part in parts]
    table = out / "gpu.md"
    text = table.read_text() if table.exists() else "# Nothing was measured\n"
    table.write_text(f"{text}\n## Tests and curriculum\n\n" + "\n".join(lines) + "\n")
    measured = out / "gpu.json"
    data: dict[str, Any] = json.loads(measured.read_text()) if measured.exists() else {"rows": []}
    data["parts"] = [{"name": part.name, "code": part.code, "outcome": part.outcome} for part in parts]
    measured.write_text(json.dumps(data, indent=1) + "\n")
    print(f"{table} and {measured}, after {seconds:.0f} s")
    return 0 if len(parts) == 3 and all(part.code == 0 for part in parts) and data["rows"] else 1


def curriculum(folder: Path) -> None:
    """configs/gpu.yaml on drawn text, in `folder`: three stages, an export, and transformers' opinion of it."""
    import yaml
    from benchmarks.gpu.drawn import Drawn, judged

    from pretrain.data.corpus.encoders import SentencePieceEncoder
    from pretrain.data.corpus.prepare import prepare

    text = Drawn.of(documents=600, words=400)
    prepare(text, folder / "corpus", SentencePieceEncoder(vocab_size=1024))
    config = yaml.safe_load((ROOT / "configs/gpu.yaml").read_text())
    config |= {"output": str(folder / "runs"), "data": {**config["data"], "corpus": str(folder / "corpus")}}
    (folder / "gpu.yaml").write_text(yaml.safe_dump(config))
    subprocess.run(["bash", "slurm/curriculum.sh", "--here", str(folder / "gpu.yaml")], cwd=ROOT, check=True)
    run = folder / "runs" / config["name"]
    export = [sys.executable, "tools/export_hf.py", str(run), str(folder / "export")]
    subprocess.run(export, cwd=ROOT, check=True)
    losses = {}
    for stage in config["stages"]:
        done = json.loads((run / stage["name"] / "DONE").read_text())
        losses[stage["name"]] = done["validation_loss"]
        for path in sorted((run / stage["name"] / "events").glob("*.json")):
            event = json.loads(path.read_text())
            print(f"{stage['name']}: growth event {event['seconds']:.1f} s, {event['certificate']}")
    exported = judged(folder / "export", text)
    print(f"held-out losses {losses}; of the export by transformers, on its training text: {exported:.3f} nats a token")
    if not exported < 1.2 * losses["deep"]:
        raise SystemExit("the exported model is not the one that was trained")


def main(arguments: list[str] | None = None) -> int:
    """The command line; gives the exit code."""
    description, _, examples = (__doc__ or "").partition("\nexamples:")
    parser = argparse.ArgumentParser(
        description=description,
        epilog="examples:" + examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--minutes", type=float, default=8, help="all it may take (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"), help="folder (default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="on a CPU if there is no GPU: only to see that it runs")
    parser.add_argument("--missing", action="store_true", help="name the packages that are not here, one a line")
    parser.add_argument("--curriculum", type=Path, help=argparse.SUPPRESS)  # runs the curriculum alone, in this folder
    options = parser.parse_args(arguments)
    if options.missing:
        print(*missing(), sep="\n")
        return 0
    if problem := fault(options.tiny or options.curriculum is not None):
        print(f"error: {problem}", file=sys.stderr)
        return 2
    sys.path.insert(0, str(ROOT))  # Cambium itself need not be installed
    from pretrain.cli import command  # needs packages that may be missing, so it cannot make the parser above

    def work() -> int:
        if options.curriculum:
            curriculum(options.curriculum)
            return 0
        return run(options)

    return command.guarded(work)


if __name__ == "__main__":
    sys.exit(main())
