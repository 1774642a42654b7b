"""docs/worked-box.md: every number in it comes out of the code."""

from __future__ import annotations

import re
from math import prod

import pytest
import torch

import growth
from growth import Box, Plan
from pretrain import config
from pretrain.checkpoint.blocks import BLOCK
from pretrain.checkpoint.writer import file_name, header_of
from pretrain.config.layouts import layout_of
from pretrain.families.parameters import parameters
from pretrain.layout import Fragment, FragmentBox, Layout, Parameter, fragment_boxes, fragments
from tests.unit.documents import ROOT

TEXT = (ROOT / "docs/worked-box.md").read_text()
Q = "model.layers.0.self_attn.q_proj.weight"
SEED, WIDE = (config.load(ROOT / "configs/demo.yaml").stage(name) for name in ("seed", "wide"))
OLD, NEW = SEED.model.architecture(), WIDE.model.architecture()
LAYOUT = Layout.make(NEW.layers, tp=2, dp=4)
RANK = 2


SAID: list[str] = []


def says(*phrases: str) -> None:
    words = re.sub(r"\s+", " ", TEXT)
    SAID.extend(phrases)
    assert not [phrase for phrase in phrases if phrase not in words]


def span(box: Box, d: int) -> str:
    return f"{box.start[d]} to {box.stop[d]}"


def short(tensor: str) -> str:
    return tensor.split(".")[-2]


def held() -> list[Parameter]:
    """The parameters of the rank."""
    pp, _, tp = LAYOUT.coordinates(RANK)
    return parameters(NEW, LAYOUT, pp, tp)


def fused() -> tuple[int, Parameter]:
    """Its first fused parameter of queries, keys and values, and its number."""
    return next((i, p) for i, p in enumerate(held()) if p.name.endswith("layers.0.self_attention.linear_qkv.weight"))


def owned() -> tuple[Fragment, list[FragmentBox]]:
    """What the rank owns of that, and its boxes."""
    number, parameter = fused()
    _, dp_rank, _ = LAYOUT.coordinates(RANK)
    fragment = next(f for f in fragments(held(), LAYOUT.dp, dp_rank) if f.index == number)
    return fragment, fragment_boxes(parameter, fragment.start, fragment.numel)


def the_box() -> Box:
    return owned()[1][1].box


def plan() -> Plan:
    """That of the event; how new rows of the vocabulary are made has no part in it."""
    seed = WIDE.seed + (1 << 32)
    return growth.between(OLD, NEW, {**WIDE.grow.policy(), "vocab": "mean"}, seed=seed, init_std=WIDE.model.init_std)


def nothing(kind: str, name: str, box: Box) -> torch.Tensor:
    raise AssertionError("a first stage reads nothing")


START = growth.initial(OLD, SEED.seed, SEED.model.init_std)
"""What `seed` is before its first step."""


def evaluated() -> torch.Tensor:
    """The box, grown from that."""
    return plan().evaluate(Q, the_box(), lambda kind, name, box: START.evaluate(name, box, nothing, kind))


def stored() -> tuple[str, Box, int, int]:
    """The file and the box of the finished stage that hold the old numbers, the box's offset and the file's size."""
    layout, shapes = layout_of(SEED, SEED.parallel.dp or 0), {name: t.shape for name, t in OLD.tensors().items()}
    (wanted,) = (box for _, box in plan().reads(Q, the_box()))
    for rank in range(layout.world):
        held = parameters(OLD, layout, 0, 0)
        boxes = [
            (part.tensor, part.box)
            for f in fragments(held, layout.dp, rank)
            for part in fragment_boxes(held[f.index], f.start, f.numel)
        ]
        _, offsets, size = header_of(boxes, shapes)
        for (tensor, box), offset in zip(boxes, offsets, strict=True):
            if tensor == Q and box.intersect(wanted) == wanted:
                return file_name("weight", rank), box, offset, size
    raise AssertionError(wanted)


def test_the_stages() -> None:
    for stage, arch in (("seed", OLD), ("wide", NEW)):
        sizes = arch.sizes
        says(f"`{stage}` (hidden {sizes['hidden']}, {sizes['heads']} heads, {sizes['kv_heads']} key-value heads")
    a, b = (" x ".join(map(str, arch.tensor(Q).shape)) for arch in (OLD, NEW))
    says(
        f"`parallel.dp` {SEED.parallel.dp}.",
        f"`parallel.dp` {LAYOUT.dp}, on {LAYOUT.world} ranks",
        f"{Q} {a} in seed {b} in wide",
    )
    assert f"each of {OLD.sizes['head_dim']})" in TEXT
    assert OLD.sizes["head_dim"] == NEW.sizes["head_dim"]


def test_what_the_rank_holds() -> None:
    _, dp_rank, tp_rank = LAYOUT.coordinates(RANK)
    says(f"rank {RANK} is tensor-parallel rank {tp_rank} and data-parallel rank {dp_rank}.")
    _, parameter = fused()
    says(f"parameter of {' x '.join(map(str, parameter.shape))}")
    says(*(f"| {span(p.local, 0)} | `{short(p.tensor)}` {span(p.box, 0)} |" for p in parameter.pieces))


def test_what_the_rank_owns() -> None:
    total = sum(prod(p.shape) for p in held())
    number, parameter = fused()
    before, border = sum(prod(p.shape) for p in held()[:number]), total // LAYOUT.dp
    cut = border - before
    fragment, boxes = owned()
    assert (total % (2 * LAYOUT.dp), fragment.start, fragment.offset) == (0, cut, 0)
    says(f"behind each other, {total:,} numbers", f"multiple of {2 * LAYOUT.dp} ", f"equal part: {border:,} numbers")
    says(f"begins at number {before:,},", f"{cut:,} numbers from its start")
    says("{} rows and {} columns".format(*divmod(cut, parameter.shape[1])), f"the other {fragment.numel:,} numbers")
    for part in boxes:
        where = f"`{short(part.tensor)}` rows {span(part.box, 0)}, columns {span(part.box, 1)}"
        says(f"| {where} | {' x '.join(map(str, part.box.shape))} | {part.offset:,} |")
    says(f"the second box, of {' x '.join(map(str, the_box().shape))} numbers")


def test_what_the_box_is_made_of() -> None:
    made, box = plan(), the_box()
    ((name, old),) = made.reads(Q, box)
    (step,) = made.steps
    assert (name, {"heads: zero", "hidden: zero"} <= set(step.operators)) == (Q, True)
    assert torch.equal(evaluated()[:, : old.stop[1]], START.evaluate(Q, old, nothing))
    for axis in ("heads", "hidden"):
        source, what = step.axes[axis].source[:, 0], "channels" if axis == "hidden" else axis
        says(f"`{axis}: zero`, {(source >= 0).sum()} old {what} and {(source < 0).sum()} new")
    says(f"rows {span(box, 0)} are old rows {span(old, 0)}, times 1")
    columns = span(old, 1)
    says(f"columns {columns} are old columns {columns}, times 1; columns {old.stop[1]} to {box.stop[1]} are new")
    new = int(made.new_mask(Q, box).sum())
    kept = box.numel - new
    says(f"of the {box.numel:,} numbers {kept:,} come from the old box, rows {span(old, 0)} and columns {columns}")
    says(f"and {new:,} are drawn")
    of = made.generations(growth.initial(OLD, 0, 0.02).generations()).of(NEW.tensor(Q), box)
    assert (int(of[0, 0]), int(of[0, -1])) == (0, 1)


def test_its_numbers() -> None:
    values, row, column = evaluated(), the_box().start[0], OLD.sizes["hidden"]
    says(f"would be {values[0, 0]:.6f}, that of `seed`", f"row {row}, column {column} would be {values[0, column]:.6f}")


def test_where_the_old_box_lies() -> None:
    file, box, offset, size = stored()
    ((_, wanted),) = plan().reads(Q, the_box())
    first, last = wanted.relative_to(box).flat_range(box.shape)
    says(f"rows {span(box, 0)} and columns {span(box, 1)} of the old tensor are in `{file}`, which has {size:,} bytes")
    says(f"from byte {offset:,} on", f"one row of {4 * box.shape[1]} bytes later, at byte {offset + 4 * first:,},")
    says(f"ends at byte {offset + 4 * last:,}", f"blocks of {BLOCK:,} bytes", f"the {4 * (last - first):,} bytes")
    assert first == box.shape[1]
    assert (offset + 4 * first) // BLOCK == (offset + 4 * last - 1) // BLOCK == 0


def test_there_is_no_other_number() -> None:
    """All that is longer than a digit, after what the tests above look for."""
    for test in (
        *(test_the_stages, test_what_the_rank_holds, test_what_the_rank_owns),
        *(test_what_the_box_is_made_of, test_its_numbers, test_where_the_old_box_lies),
    ):
        test()
    number = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
    known = {found.rstrip(",") for said in SAID for found in number.findall(said)} | {str(OLD.sizes["head_dim"])}
    prose = re.sub(r"`[^`]*`|\]\([^)]*\)", "", TEXT)
    assert not [n for n in (found.rstrip(",") for found in number.findall(prose)) if len(n) > 1 and n not in known]


def test_a_wrong_number_is_seen() -> None:
    with pytest.raises(AssertionError):
        says("rows 64 to 129")
