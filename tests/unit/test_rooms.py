"""The rooms of the code: who may import whom. Imports inside functions and for type checking count as well."""

from functools import cache
from pathlib import Path

import pytest

from tests.unit.test_imports import ROOT, imports, sources

COLUMN = """
    tools
    pretrain.__main__
    pretrain.megatron_lm
    pretrain.cli pretrain.hf pretrain.dryrun
    pretrain.report
    pretrain.stage
    pretrain.event
    pretrain.engine
    pretrain.search pretrain.study pretrain.judge pretrain.prepare pretrain.generate
    pretrain.state
    pretrain.schedule
    pretrain.estimate pretrain.verify
    pretrain
    pretrain.families
    pretrain.losses pretrain.kernels
    pretrain.guard
    pretrain.config pretrain.checkpoint pretrain.data
    pretrain.layout
    pretrain.runtime
    pretrain.errors
    growth
"""
"""From the top down: a module imports its own room and those of the lines below. The room of the dry run is at the top,
since it drives whole stages; pretrain.kernels has the fused kernels; pretrain itself registers the families."""

LEVELS = {room: level for level, line in enumerate(reversed(COLUMN.split("\n"))) for room in line.split()}

SHARED = (
    "decoder/model",
    "causal",
    "attention",
    "documents",
    "norm",
    "vocabulary",
    "layer",
    "linear",
    "dropout",
    "layer_drop",
    "memory",
    "span_attention",
)

MEGATRON = (
    *("pretrain/families/*/model.py", "pretrain/families/*/attention.py", "pretrain/engine/*.py"),
    *(f"pretrain/families/common/{name}.py" for name in SHARED),
    *("pretrain/dryrun/*.py", "tools/benchmarks/*.py", "tools/benchmarks/gpu/*.py"),
)
"""Where Megatron-core is imported: where it builds and runs a model."""

DEEPSPEED = ("pretrain/engine/*.py",)

DISTRIBUTED = (
    *("pretrain/runtime/comm.py", "pretrain/runtime/ranks.py"),
    *("pretrain/checkpoint/checkpointer.py", "pretrain/checkpoint/find.py"),  # the group that saves and restores
    "pretrain/guard/recheck.py",
    "pretrain/kernels/cross_entropy.py",  # over tensor-parallel shards of the vocabulary
    "pretrain/losses/soft_labels.py",  # likewise
    *("pretrain/engine/engine.py", "pretrain/engine/exchange.py", "pretrain/engine/gradients.py"),
    *("pretrain/engine/megatron.py", "pretrain/engine/memory.py", "pretrain/engine/zero.py"),
    *("pretrain/event/certify.py", "pretrain/stage/train.py"),
    *("pretrain/cli/command.py", "pretrain/cli/launch.py", "pretrain/cli/preflight.py", "pretrain/__main__.py"),
    "pretrain/megatron_lm/export.py",  # the classes of its format for checkpoints
    "pretrain/dryrun/collectives.py",  # the ones that stand in for torch's
    *("tools/benchmarks/data.py", "tools/benchmarks/ranks.py", "tools/benchmarks/step.py"),
    "tools/benchmarks/store_ranks.py",
)
"""All that talks to other ranks; that this is rank 0, pretrain.runtime.ranks.is_first says."""


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


PATHS = {_name(path): path for path in sources("growth", "pretrain", "tools")}


@cache
def _imported(module: str) -> frozenset[str]:
    """The absolute names that a module imports: of ours, the modules; the names in a module of others as they are."""
    found = set()
    for name in imports(PATHS[module]):
        while name.split(".")[0] in ("growth", "pretrain", "tools") and name not in PATHS:
            name = name.rpartition(".")[0]
        found.add(name)
    return frozenset(found - {module})


def _room(module: str) -> str:
    first, _, rest = module.partition(".")
    return f"{first}.{rest.partition('.')[0]}" if first == "pretrain" and rest else first


def test_arrows_point_down() -> None:
    wrong = [
        f"{module} imports {name}"
        for module in PATHS
        for name in _imported(module)
        if name in PATHS and _room(name) != _room(module)
        if LEVELS[_room(name)] >= LEVELS[_room(module)]
    ]
    assert not wrong


def test_there_are_no_circles() -> None:
    """Modules of which none is left when those that import nothing that is left are taken away, again and again."""
    left = {module: {name for name in _imported(module) if name in PATHS} for module in PATHS}
    while free := {module for module, names in left.items() if not names & left.keys()}:
        left = {module: names for module, names in left.items() if module not in free}
    assert not {module: names & left.keys() for module, names in left.items()}


@pytest.mark.parametrize(
    ("library", "where"), [("megatron", MEGATRON), ("deepspeed", DEEPSPEED), ("torch.distributed", DISTRIBUTED)]
)
def test_who_imports_what_is_slow_or_collective(library: str, where: tuple[str, ...]) -> None:
    allowed = {path for pattern in where for path in ROOT.glob(pattern)}
    found = {path for module, path in PATHS.items() if any(_of(library, name) for name in _imported(module))}
    assert sorted(map(str, found - allowed)) == []
    if library == "torch.distributed":
        assert not allowed - found, "they need not be listed"


def _of(library: str, name: str) -> bool:
    return name == library or name.startswith(f"{library}.")
