"""The README's code runs and its table is the code's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import growth
from growth import between
from growth.certificate import relative_error
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
