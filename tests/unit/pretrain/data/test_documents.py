"""Where documents begin, and what follows from it, against plain loops."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.documents import STARTS, apart, cu_seqlens, lengths, parted, positions, seen

END = 2


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 4), min_size=7, max_size=7), min_size=1, max_size=4))
def test_follows_from_the_ids(ids: list[list[int]]) -> None:
    samples = apart({"inputs": torch.tensor(ids)}, END)
    numbers, places = [], []
    for row in ids:
        number = place = 0
        for at, token in enumerate(row):
            opens = at > 0 and token == END and row[at - 1] != END
            number, place = (number + 1, 0) if opens else (number, place + (at > 0))
            numbers.append(number)
            places.append(place)
    assert positions(samples).flatten().tolist() == places
    of = torch.tensor(numbers).view(len(ids), 7)
    found = parted(samples)
    assert found is not None
    assert torch.equal(found, of[:, :, None] != of[:, None, :])
    sizes = [[int((row == n).sum()) for n in range(int(row.max()) + 1)] for row in of]
    assert lengths(samples[STARTS], 7) == sizes
    bounds = cu_seqlens(samples[STARTS], 7)
    assert bounds.dtype == torch.int32
    assert [n for n in bounds.diff().tolist() if n] == [n for row in sizes for n in row]
    assert (int(bounds[0]), int(bounds[-1])) == (0, 7 * len(ids))
    assert seen(samples) == sum(n * n for row in sizes for n in row) / (7 * len(ids))


def test_rows_of_zeros_are_one_document() -> None:
    """As padding of a batch has them."""
    samples = {"inputs": torch.zeros(2, 4, dtype=torch.int64), STARTS: torch.tensor([[0, 3], [0, 0]])}
    assert positions(samples).tolist() == [[0, 1, 2, 0], [0, 1, 2, 3]]
    assert lengths(samples[STARTS], 4) == [[3, 1], [4]]


def test_without_documents() -> None:
    samples = {"inputs": torch.full((2, 4), END)}
    assert positions(samples).tolist() == [0, 1, 2, 3]
    assert parted(samples) is None
    assert seen(samples) is None
