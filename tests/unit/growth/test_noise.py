"""Compiled noise over copies against a plain loop in double precision."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from growth.evaluate.copy_noise import Null
from growth.evaluate.dimension import Copies

NOISE = 0.25
PATTERNS = {  # the old index that each new one copies
    "tiled": lambda old: [i % old for i in range(2 * old)],
    "grouped": lambda old: [i // 3 for i in range(3 * old)],
    "random": lambda old: [*range(old), *np.random.default_rng(old).integers(0, old, 2 * old)],
    "one": lambda old: [*range(old), 0],
}


def copies_of(source: list[int], split: float = 1.0) -> Copies:
    """The copies of each index; each has `split` times the share of the one before it."""
    members = [[c for c, other in enumerate(source) if other == s] for s in source]
    index = np.full((len(source), max(map(len, members))), -1)
    share = np.zeros(index.shape)
    for i, found in enumerate(members):
        parts = split ** np.arange(len(found))
        index[i, : len(found)], share[i, : len(found)] = found, parts / parts.sum()
    return Copies(index, share, NOISE)


def factors(z: torch.Tensor, copies: Copies) -> torch.Tensor:
    """What every index is multiplied by, in double precision."""
    found = torch.ones(z.shape, dtype=torch.float64)
    for i, (index, share) in enumerate(zip(copies.index, copies.share, strict=True)):
        if (index >= 0).sum() > 1:
            mean = sum(f * z[:, c].double() for c, f in zip(index, share, strict=True) if c >= 0)
            found[:, i] += NOISE * (z[:, i] - mean)
    return found


@settings(max_examples=60, deadline=None)
@given(
    pattern=st.sampled_from(sorted(PATTERNS)),
    old=st.integers(1, 40),
    split=st.sampled_from([1.0, 0.5]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    transposed=st.booleans(),
    data=st.data(),
)
def test_any_part_is_what_a_plain_loop_makes(
    pattern: str, old: int, split: float, dtype: torch.dtype, transposed: bool, data: st.DataObject
) -> None:
    copies = copies_of(PATTERNS[pattern](old), split)
    size = len(copies.index)
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start + 1, size))
    z, value = torch.randn(2, 3, size, generator=torch.Generator().manual_seed(old)).to(dtype)
    part = Copies(copies.index[start:stop], copies.share[start:stop], NOISE)
    low, high = part.span
    out = value[:, start:stop].clone()
    out = out.t().contiguous().t() if transposed else out
    Null(part, start - low, dtype).multiply(out, z[:, low:high])
    expected = (value * factors(z, copies))[:, start:stop]
    tolerance = 1e-14 if dtype == torch.float64 else 4e-6  # a few roundings of numbers up to about 4
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_it_sums_to_nothing_over_the_copies_and_leaves_others_alone(pattern: str) -> None:
    source = PATTERNS[pattern](20)
    copies = copies_of(source, split=0.5)
    out = torch.ones(3, len(source), dtype=torch.float64)
    z = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).double()
    Null(copies, 0, out.dtype).multiply(out, z)
    for s in range(20):
        members = [c for c, other in enumerate(source) if other == s]
        share = torch.from_numpy(copies.share[members[0], : len(members)])
        assert len(members) == 1 or (out[:, members] != 1).all()
        torch.testing.assert_close(out[:, members] @ share, torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-14)
