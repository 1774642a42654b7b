"""The arrows between the rooms: tools -> pretrain -> growth, and never back."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIGHT = ("pretrain/layout", "pretrain/checkpoint", "pretrain/data", "pretrain/config")
"""Starts at once: arithmetic and files, never the 5 seconds of megatron."""


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports(path: Path, top_level_only: bool = False) -> Iterator[str]:
    """The absolute names of the modules that a file imports, `from a import b` as a.b."""
    module = list(path.relative_to(ROOT).with_suffix("").parts)
    package = module[:-1]  # of `pretrain/x.py` and of `pretrain/__init__.py` alike, up to the last part
    nodes: list[ast.AST] = [ast.parse(path.read_text())]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            base += node.module.split(".") if node.module else []
            yield from (".".join([*base, alias.name]) for alias in node.names)
        if not (top_level_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))):
            nodes.extend(ast.iter_child_nodes(node))


def roots(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", sources("growth"), ids=lambda path: str(path.relative_to(ROOT)))
def test_growth_is_pure(path: Path) -> None:
    assert roots(path) <= sys.stdlib_module_names | {"growth", "llvmlite", "numba", "numpy", "torch"}


@pytest.mark.parametrize("path", sources("pretrain"), ids=lambda path: str(path.relative_to(ROOT)))
def test_pretrain_does_not_know_the_tools_or_the_tests(path: Path) -> None:
    tools = {path.stem for path in (ROOT / "tools").glob("*.py")}
    assert not roots(path) & (({"tools", "tests"} | tools) - sys.stdlib_module_names)


def test_what_must_start_at_once_never_imports_megatron() -> None:
    """Not directly, and not through another module of ours that it imports when it is imported."""
    ours = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sources("growth", "pretrain")}
    ours |= {name.removesuffix(".__init__"): path for name, path in ours.items()}
    todo = [path for path in sources("pretrain") if str(path.relative_to(ROOT)).startswith(LIGHT)]
    assert len(todo) > 10
    reached: dict[Path, set[str]] = {}
    while todo:
        path = todo.pop()
        reached[path] = set(imports(path, top_level_only=True))
        for name in reached[path]:
            parts = name.split(".")
            names = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]  # a.b.c imports a and a.b too
            todo += [ours[name] for name in names if name in ours and ours[name] not in reached]
    slow = {"megatron", "deepspeed"}
    assert not [path for path, names in reached.items() if slow & {name.split(".")[0] for name in names}]


def test_a_rank_starts_without_the_compiler() -> None:
    """In the order in which `python -m pretrain` imports; torch.compile is afterwards what it was."""
    program = "import torch, sys; before = torch.compile; import pretrain.engine, pretrain.stage.train; "
    program += "assert torch.compile is before; assert 'torch._inductor.compile_fx' not in sys.modules"
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, cwd=ROOT)
