"""Boxes against flat ranges of a row-major tensor, cut small, and moved."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from growth.box import Box
from tests.unit.pretrain.checkpoint.boxes import box_of, shapes


@given(st.data(), shapes)
def test_the_boxes_of_a_flat_range_are_its_elements_in_order(data: st.DataObject, shape: tuple[int, ...]) -> None:
    tensor = torch.arange(Box.whole(shape).numel).reshape(shape)
    start = data.draw(st.integers(0, tensor.numel()))
    stop = data.draw(st.integers(start, tensor.numel()))
    boxes = Box.of_flat_range(shape, start, stop)
    elements = [i for box in boxes for i in tensor[box.slices()].reshape(-1).tolist()]
    assert elements == list(range(start, stop))
    assert len(boxes) <= max(1, 2 * len(shape) - 1)


@given(st.data(), shapes)
def test_flat_range_spans_the_box(data: st.DataObject, shape: tuple[int, ...]) -> None:
    tensor = torch.arange(Box.whole(shape).numel).reshape(shape)
    box = data.draw(box_of(shape))
    inside = tensor[box.slices()].reshape(-1)
    assert box.flat_range(shape) == (inside[0], inside[-1] + 1)


@given(st.data(), shapes, st.integers(4, 200))
def test_parts_are_the_box_in_order(data: st.DataObject, shape: tuple[int, ...], max_bytes: int) -> None:
    tensor = torch.arange(Box.whole(shape).numel).reshape(shape)
    box = data.draw(box_of(shape))
    parts = list(box.parts(max_bytes))
    elements = [i for part in parts for i in tensor[part.slices()].reshape(-1).tolist()]
    assert elements == tensor[box.slices()].reshape(-1).tolist()
    assert all(4 * part.numel <= max_bytes for part in parts)


@given(st.data(), shapes)
def test_moved_there_and_back(data: st.DataObject, shape: tuple[int, ...]) -> None:
    box, origin = data.draw(box_of(shape)), data.draw(box_of(shape))
    assert box.relative_to(origin).moved(origin.start) == box
