import torch
from hypothesis import given
from hypothesis import strategies as st

from growth.box import Box
from pretrain.checkpoint import flat_boxes, flat_range, pieces
from tests.unit.pretrain.checkpoint.boxes import box_of, shapes


@given(st.data(), shapes)
def test_flat_boxes_are_the_flat_range_in_order(data: st.DataObject, shape: tuple[int, ...]) -> None:
    tensor = torch.arange(Box.whole(shape).numel).reshape(shape)
    start = data.draw(st.integers(0, tensor.numel()))
    stop = data.draw(st.integers(start, tensor.numel()))
    boxes = flat_boxes(shape, start, stop)
    found = [i for box in boxes for i in tensor[box.slices()].reshape(-1).tolist()]
    assert found == list(range(start, stop))
    assert len(boxes) <= max(1, 2 * len(shape) - 1)


@given(st.data(), shapes)
def test_flat_range_spans_the_box(data: st.DataObject, shape: tuple[int, ...]) -> None:
    tensor = torch.arange(Box.whole(shape).numel).reshape(shape)
    box = data.draw(box_of(shape))
    inside = tensor[box.slices()].reshape(-1)
    assert flat_range(shape, box) == (inside[0], inside[-1] + 1)


@given(st.data(), shapes, st.integers(4, 200))
def test_pieces_are_the_box_in_order(data: st.DataObject, shape: tuple[int, ...], max_bytes: int) -> None:
    tensor = torch.arange(Box.whole(shape).numel).reshape(shape)
    box = data.draw(box_of(shape))
    parts = list(pieces(box, max_bytes))
    found = [i for part in parts for i in tensor[part.slices()].reshape(-1).tolist()]
    assert found == tensor[box.slices()].reshape(-1).tolist()
    assert all(4 * part.numel <= max_bytes for part in parts)
