"""The README's code runs and its table is the code's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import growth
from growth import Architecture, Box, between
from growth.certificate import relative_error
from growth.evaluate.index_runs import How, Term
from growth.operators import OPERATORS
from pretrain.families.reference import logits
from pretrain.verify import operator_table
from tests.unit.growth.models import SMALL, STD, reader, tokens, trained

README = Path(growth.__file__).with_name("README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_example_runs() -> None:
    names: dict[str, Any] = {"read": lambda kind, name, box: torch.ones(box.shape)}
    exec(BLOCKS[0], names)
    assert names["piece"].shape == (1408, 2048)


def test_the_operator_that_is_written_step_by_step() -> None:
    exec(BLOCKS[1], {})
    try:
        plan = between(SMALL, SMALL.replace({"ffn": 14}), {"ffn": "twins"}, seed=0, init_std=STD)
    finally:
        del OPERATORS["ffn"]["twins"]
    assert plan.preserves
    read, ids = trained(SMALL), tokens(9)
    expected = logits(read, SMALL, ids, torch.float64)
    assert relative_error(logits(reader(plan, read), plan.new, ids, torch.float64), expected) < 1e-10


def test_the_picture_of_a_box() -> None:
    """Both grids, the runs of both dimensions and the regions that are read."""
    sizes = {"vocab": 5, "hidden": 4, "layers": 2, "heads": 2, "head_dim": 2, "ffn": 4, "positions": 8}
    old = Architecture("gpt2", sizes)
    policy = {"layers": "stack", "ffn": {"operator": "replicate", "snr_db": None}}
    plan = between(old, old.replace({"hidden": 6, "layers": 4, "ffn": 8}), policy, seed=0, init_std=STD)
    source, name, box = "transformer.h.0.mlp.c_proj.weight", "transformer.h.2.mlp.c_proj.weight", Box((2, 3), (6, 7))
    weight = 10.0 * torch.arange(4.0)[:, None] + torch.arange(4.0)
    value = plan.evaluate(name, box, lambda kind, name, box: weight[box.slices()])

    picture = next(block for block in re.findall(r"```text\n(.*?)```", README, re.DOTALL) if name in block)
    old_rows = re.findall(r"^ {6}(\d) {2}((?: +\d+){4})(?: |$)", picture, re.MULTILINE)
    new_rows = re.findall(r" (\d) {2}((?: +\d+\.\d){4})(?: |$)", picture, re.MULTILINE)
    assert [int(i) for i, _ in old_rows] == [0, 1, 2, 3]
    assert [int(i) for i, _ in new_rows] == [2, 3, 4, 5]
    assert torch.equal(torch.tensor([[float(x) for x in row.split()] for _, row in old_rows]), weight)
    assert torch.equal(torch.tensor([[float(x) for x in row.split()] for _, row in new_rows]), value)

    recipe = plan.steps[0].maps.recipe(name, box, "weight")
    assert [run.how for run in recipe.dims[0].runs(4)] == [How.SUM, How.MIX]
    assert [run.terms for run in recipe.dims[1].runs(4)] == [
        (Term(slice(3, 4, 1), 0.5),),
        (Term(slice(0, 3, 1), 0.5),),
    ]
    assert list(plan.reads(name, box)) == [(source, Box((2, 0), (4, 4))), (source, Box((0, 0), (4, 4)))]
    for old_box in (Box((2, 0), (4, 4)), Box((0, 0), (4, 4))):
        assert f"`Box({old_box.start}, {old_box.stop})`" in README
    assert not plan.evaluate(name, box, lambda kind, name, box: weight[box.slices()], "exp_avg").any()


def test_where_things_are() -> None:
    """Every module is in the table of files, alone or by its folder, and every file of the table is there."""
    folder = Path(growth.__file__).parent
    named = set(re.findall(r"`growth/([\w/]+(?:\.py|/))`", README.split("## Where things are")[1]))
    assert all((folder / name).exists() for name in named)
    modules = {str(path.relative_to(folder)) for path in folder.rglob("*.py") if path.name != "__init__.py"}
    folders = tuple(name for name in named if name.endswith("/"))
    assert {m for m in modules if m not in named and not m.startswith(folders)} == {"errors.py"}


def table() -> list[list[str]]:
    section = README.split(operator_table.BEGIN)[1].split(operator_table.END)[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.strip().splitlines()[2:]]


def test_the_table_has_every_operator() -> None:
    assert {(case.key, case.name) for case in operator_table.CASES} == {
        (key, name) for key, found in OPERATORS.items() for name in found
    }
    expected = [[case.key, case.name, case.label] for case in operator_table.CASES]
    assert [[key, name.split(" ")[0], label] for key, name, label, *_ in table()] == expected


def test_a_row_is_what_is_measured() -> None:
    for case, row in zip(operator_table.CASES, table(), strict=True):
        if (case.key, case.name) in {("layers", "average"), ("ffn", "zero_gate_and_down")}:
            assert operator_table.row(case) == row


@pytest.mark.long
def test_the_table_is_what_is_measured() -> None:
    assert [operator_table.row(case) for case in operator_table.CASES] == table()
